"""Where tensors are computed, and when that is done."""

from __future__ import annotations

import torch

from engine.errors import UsageError


def pick_device(name: str) -> str:
    """``cpu`` or ``cuda`` for ``auto``, ``cpu`` or ``cuda``. Raises UsageError for a GPU that is not there."""
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise UsageError("--device cuda: torch sees no GPU here: use --device cpu, or look at `qtui doctor`")
    return "cuda" if available and name in ("auto", "cuda") else "cpu"


def wait(device: torch.device | str) -> None:
    """Return when ``device`` has done what it was asked: a GPU is only told what to do."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
