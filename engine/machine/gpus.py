"""The GPUs that torch can use, as plain values. Importing this module costs nothing."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path
from typing import Any

from engine.errors import one_line

_DRIVER = Path("/proc/driver/nvidia/version")


def gpus() -> list[dict[str, Any]]:
    """Name, memory in bytes, compute capability, and which numbers its matrix units multiply.

    An entry with ``error`` stands for a driver that is too old or a device that is taken.
    """
    import torch

    found: list[dict[str, Any]] = []
    try:
        for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
            free, total = torch.cuda.mem_get_info(index)
            major, minor = torch.cuda.get_device_capability(index)
            about = {"name": torch.cuda.get_device_name(index), "free_bytes": free, "total_bytes": total}
            found.append({**about, "capability": f"{major}.{minor}", **units(major, minor)})
    except RuntimeError as error:
        found.append({"name": "unusable", "error": one_line(error, 200)})
    return found


def units(major: int, minor: int) -> dict[str, bool]:
    """Numbers with matrix units of their own, by compute capability: NVIDIA's CUDA C++ Programming Guide, "Tensor Core"
    data types by capability (int8 from 7.2, bfloat16 from 8.0)."""
    return {"int8": (major, minor) >= (7, 2), "bfloat16": (major, minor) >= (8, 0)}


def driver() -> str | None:
    """The version of NVIDIA's kernel driver, None where there is none."""
    with contextlib.suppress(OSError):
        found = re.search(r"(\d+\.\d+(\.\d+)?)", _DRIVER.read_text(encoding="utf-8", errors="replace"))
        return found.group(1) if found else None
    return None
