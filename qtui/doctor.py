"""``qtui doctor``: what this machine can run."""

from __future__ import annotations

import sys
from argparse import Namespace
from typing import Any

GIB = 2**30


def doctor(args: Namespace) -> int:
    """Print versions, kernels, GPUs, optional packages and folders."""
    from engine.examine import examine
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
                ("name", found["processor"] or "unknown"),
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
