"""Learning rates over a training. Torch-free."""

from __future__ import annotations

import math


def warm_cosine(lr: float, warmup: float, step: int, steps: int, floor: float = 0.0) -> float:
    """That of step 0..``steps`` - 1: it rises linearly to ``lr`` over ``warmup`` (a part of all steps) and falls as a cosine to
    ``floor`` times that (Loshchilov and Hutter 2017, arXiv:1608.03983, without restarts)."""
    rising = max(int(warmup * steps), 1)
    if step < rising:
        return lr * (step + 1) / rising
    return lr * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * (step - rising) / max(steps - rising, 1))))
