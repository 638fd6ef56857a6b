"""How much memory this process may still take, as the operating system tells it. Torch-free."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

_MEMINFO, _STATUS, _CGROUP = Path("/proc/meminfo"), Path("/proc/self/status"), Path("/sys/fs/cgroup")


def available() -> int | None:
    """Bytes that can be taken without swapping, the container's limit included; None where the system does not tell."""
    found = [value for value in (_entry(_MEMINFO, "MemAvailable"), _left_in_container()) if value is not None]
    if found:
        return min(found)
    with contextlib.suppress(AttributeError, OSError, ValueError):
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return None


def peak() -> int | None:
    """The most bytes that this process has had in memory so far; None where the system does not tell."""
    return _entry(_STATUS, "VmHWM")


def _entry(file: Path, key: str) -> int | None:
    try:
        for line in file.read_text(encoding="utf-8").splitlines():
            if line.startswith(f"{key}:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    return None


def _left_in_container() -> int | None:
    try:
        most, taken = ((_CGROUP / name).read_text(encoding="utf-8").strip() for name in ("memory.max", "memory.current"))
        return None if most == "max" else max(int(most) - int(taken), 0)
    except (OSError, ValueError):
        return None
