"""Where tensors are computed, and when that is done."""

from __future__ import annotations

import torch


def wait(device: torch.device | str) -> None:
    """Return when ``device`` has done what it was asked: a GPU is only told what to do."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
