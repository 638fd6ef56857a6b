"""What this machine can run. Importing this module costs nothing: torch is imported when it is asked."""

from __future__ import annotations

import contextlib
import os
import platform
import re
import shutil
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any

from engine.export.registry import purposes
from engine.machine import gpus, processor
from engine.recipe.number_formats import stored_only

# Optional packages, and what each of them is for.
OPTIONAL = {**purposes(), "nncf": "a peer in the benchmarks"}


def examine(measure: bool = False) -> dict[str, Any]:
    """Versions, processor, kernels, GPUs, optional packages and folders, as plain values. The first time this takes some
    seconds: the kernels are tried. ``measure`` takes two more, for what the processor reaches at most; else that is told as far as it
    is known."""
    import torch

    from engine.data.images.cache import data_cache
    from engine.export.registry import install
    from engine.kernels.gpu.probe import seen_from
    from engine.kernels.limits import known, limits
    from engine.kernels.probe import probe
    from engine.paths import cache_dir
    from engine.runs.rundir import runs_root

    machine = probe()
    packages = {name: _version(name) for name in OPTIONAL}
    missing = tuple(name for name, known in packages.items() if known is None)
    folders = {"cache": cache_dir(), "data": data_cache(), "runs": runs_root()}
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torch_tested": tested(torch.__version__),
        "torchvision": _version("torchvision"),
        "processor": processor.name(),
        "isa": machine.isa,
        "vnni": machine.vnni,
        "features": processor.features(),
        "saturates": machine.saturates,
        "activation_bits": machine.activation_bits,
        "integer": machine.integer,
        "kernels": machine.kernels,
        "threads": torch.get_num_threads(),
        "limits": found.to_dict() if (found := limits(machine, again=True) if measure else known(machine)) else None,
        **processor.cores(),
        "gpus": (there := gpus.gpus()),
        "gpu_kernels": seen_from(machine, "cuda").kernels if any(gpu.get("capability") for gpu in there) else {},
        "driver": gpus.driver(),
        "cuda": torch.version.cuda,
        "formats": {"kernels": "int2 to int8", "stored": {readers: list(names) for readers, names in stored_only().items()}},
        "packages": packages,
        "purposes": OPTIONAL,
        "install": install(missing) if missing else None,
        "folders": {name: str(path.absolute()) for name, path in folders.items()},
        "free_bytes": {name: _free(path) for name, path in folders.items()},
    }


def tested(torch_version: str) -> dict[str, Any] | None:
    """The range of torch that this program is tested with (its own requirement), and whether a version is in it; None where
    the program is not installed as a package."""
    with contextlib.suppress(PackageNotFoundError):
        wanted = next((text for text in requires("qtui") or () if re.match(r"torch\b(?!vision)", text)), "")
        low, high = (re.search(pattern, wanted) for pattern in (r">=\s*([\d.]+)", r"<\s*([\d.]+)"))
        if low and high:
            inside = _numbers(low[1]) <= _numbers(torch_version) < _numbers(high[1])
            return {"range": f">={low[1]}, <{high[1]}", "inside": inside}
    return None


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", text.partition("+")[0])[:2])


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _free(path: Path) -> int | None:
    """Bytes that are free where a folder is, or would be made."""
    place = next((p for p in (path, *path.absolute().parents) if p.exists()), None)
    with contextlib.suppress(OSError):
        return shutil.disk_usage(place).free if place and os.access(place, os.R_OK) else None
    return None
