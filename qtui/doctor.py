"""``qtui doctor``: what this machine can run."""

from __future__ import annotations

import os
import platform
import sys
from argparse import Namespace
from importlib.metadata import PackageNotFoundError, version
from typing import Any

OPTIONAL = ("onnxruntime", "openvino", "nncf")
GIB = 2**30


def doctor(args: Namespace) -> int:
    """Print versions, kernels, GPUs, optional packages and folders."""
    from qtui.listing import print_json

    found = examine()
    if args.json:
        return print_json(found)
    from qtui.screen import Screen

    screen = Screen(sys.stdout)
    for title, lines in _sections(found):
        screen.line(title, "bold")
        width = max((len(name) for name, _ in lines), default=0)
        for name, value in lines:
            screen.line(f"{name:<{width}}  {value}", "", 2)
    return 0


def examine() -> dict[str, Any]:
    """Everything that ``doctor`` tells, as plain values. The first time this takes some seconds: the kernels are tried."""
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


def _sections(found: dict[str, Any]) -> list[tuple[str, list[tuple[str, str]]]]:
    vnni = "yes" if found["vnni"] else "no"
    bits = {
        True: "7 bits: sums of 8-bit products saturate here",
        False: "8 bits: sums of 8-bit products are exact here",
        None: f"{found['activation_bits']} bits: not measured, no kernel ran",
    }[found["saturates"]]
    gpus = [(gpu["name"], gpu.get("error") or _memory(gpu)) for gpu in found["gpus"]] or [("none", "")]
    return [
        ("versions", [(name, found[name] or "not installed") for name in ("python", "torch", "torchvision")]),
        (
            "processor",
            [
                ("instructions", found["isa"]),
                ("VNNI", vnni),
                ("activations", bits),
                ("threads", f"{found['threads']} of {found['processors']} processors"),
            ],
        ),
        ("integer kernels", [(name, "exact" if error is None else error) for name, error in found["kernels"].items()]),
        ("GPUs", gpus),
        ("optional packages", [(name, known or "not installed") for name, known in found["packages"].items()]),
        ("folders", list(found["folders"].items())),
    ]


def _memory(gpu: dict[str, Any]) -> str:
    return f"{gpu['free_bytes'] / GIB:.1f} of {gpu['total_bytes'] / GIB:.1f} GiB free"
