"""The processor as the operating system tells it: its name, what it knows, and how much of it this process may use. Torch-free."""

from __future__ import annotations

import contextlib
import os
import platform
from collections.abc import Mapping
from pathlib import Path

# What matters to matrix products of integers, by the name that Linux gives it: x86's, then ARM's.
FEATURES: Mapping[str, tuple[str, ...]] = {
    "x86": ("avx2", "avx512f", "avx_vnni", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16"),
    "arm": ("asimddp", "i8mm", "bf16", "sve"),
}
_CPUINFO, _CGROUP = Path("/proc/cpuinfo"), Path("/sys/fs/cgroup")


def name() -> str | None:
    """The processor's name for people."""
    found = next((value for key, value in _cpuinfo() if key == "model name" and value), None)
    return " ".join(found.split()) if found else platform.processor() or None


def features() -> dict[str, bool]:
    """Which of ``FEATURES`` the processor has, for its architecture; empty where the system does not tell."""
    flags = next((value.split() for key, value in _cpuinfo() if key in ("flags", "Features")), [])
    known = FEATURES["arm" if platform.machine().lower() in ("aarch64", "arm64") else "x86"]
    return {feature: feature in flags for feature in known} if flags else {}


def cores() -> dict[str, float | None]:
    """Processors of the machine, physical cores, those that this process may run on, and the container's limit in
    processors; None where it is not known, or not limited."""
    pairs = _cpuinfo()
    sockets = [value for key, value in pairs if key == "physical id"]
    ids = [value for key, value in pairs if key == "core id"]
    physical = len(set(zip(sockets, ids, strict=True))) if ids and len(sockets) == len(ids) else None
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
    return {"processors": os.cpu_count(), "physical": physical, "allowed": allowed, "container": container_limit()}


def container_limit(root: Path = _CGROUP) -> float | None:
    """Processors that the control group grants (Linux cgroup v2's ``cpu.max``, v1's quota), None without a limit."""
    with contextlib.suppress(OSError, ValueError):
        quota, period = (root / "cpu.max").read_text(encoding="utf-8").split()
        return None if quota == "max" else round(int(quota) / int(period), 2)
    with contextlib.suppress(OSError, ValueError):
        quota_us, period_us = (int((root / "cpu" / f"cpu.cfs_{part}_us").read_text(encoding="utf-8")) for part in ("quota", "period"))
        return round(quota_us / period_us, 2) if quota_us > 0 else None
    return None


def _cpuinfo() -> list[tuple[str, str]]:
    with contextlib.suppress(OSError):
        lines = _CPUINFO.read_text(encoding="utf-8", errors="replace").splitlines()
        return [(key.strip(), value.strip()) for key, _, value in (line.partition(":") for line in lines)]
    return []
