"""``qtui doctor``: what this machine can run."""

from __future__ import annotations

import sys
from argparse import Namespace


def doctor(args: Namespace) -> int:
    """Print versions, processor, kernels, GPUs, optional packages and folders."""
    from engine.runs.examine import examine
    from qtui.listing import print_json

    found = examine(measure=True)
    if args.json:
        return print_json(found)
    from qtui.machine_words import sections
    from qtui.screen import Screen

    screen = Screen(sys.stdout)
    for title, lines in sections(found):
        screen.line(title, "bold")
        width = max((len(name) for name, _ in lines), default=0)
        for name, value in lines:
            screen.entry(name, value, width)
    return 0
