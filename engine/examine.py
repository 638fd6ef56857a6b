"""What this machine can run. Importing this module costs nothing: torch is imported when it is asked."""

from __future__ import annotations

import contextlib
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

OPTIONAL = ("onnxruntime", "openvino", "nncf")


def examine() -> dict[str, Any]:
    """Versions, processor, kernels, GPUs, optional packages and folders, as plain values. The first time this takes some
    seconds: the kernels are tried."""
    import torch

    from engine.data.cache import data_cache
    from engine.kernels.probe import probe
    from engine.paths import cache_dir
    from engine.rundir import runs_root

    machine = probe()
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": _version("torchvision"),
        "processor": _processor(),
        "isa": machine.isa,
        "vnni": machine.vnni,
        "saturates": machine.saturates,
        "activation_bits": machine.activation_bits,
        "kernels": machine.kernels,
        "threads": torch.get_num_threads(),
        "processors": os.cpu_count(),
        "gpus": _gpus(),
        "packages": {name: _version(name) for name in OPTIONAL},
        "folders": {"cache": str(cache_dir()), "data": str(data_cache()), "runs": str(runs_root())},
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _processor() -> str | None:
    """The processor's name for people."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, name = line.partition(":")
            if key.strip() == "model name":
                return " ".join(name.split()) or None
    return platform.processor() or None


def _gpus() -> list[dict[str, Any]]:
    import torch

    found: list[dict[str, Any]] = []
    try:
        for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
            free, total = torch.cuda.mem_get_info(index)
            found.append({"name": torch.cuda.get_device_name(index), "free_bytes": free, "total_bytes": total})
    except RuntimeError as error:  # A driver that is too old, a device that is taken.
        found.append({"name": "unusable", "error": " ".join(str(error).split())[:200]})
    return found
