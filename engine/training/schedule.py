"""The schedule of a training: how long, how fast, by which optimizer. Torch-free."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """What the training loop goes by.

    The learning rate rises linearly to ``lr`` over ``warmup`` (a part of all steps) and falls as a cosine to ``final`` times
    ``lr``. ``optimizer`` is SGD with Nesterov momentum, or AdamW. ``weight_decay`` is that of matrices and convolutions alone.
    ``momentum`` is the decay of the running mean of gradients. ``clip`` bounds the norm of the gradient. ``seed`` orders the
    data and draws what is random in it. ``mixed`` computes in 16 bits where the device is fast at it.
    """

    epochs: int
    lr: float
    warmup: float = 0.1
    final: float = 0.0
    optimizer: Literal["sgd", "adamw"] = "sgd"
    weight_decay: float = 0.0
    momentum: float = 0.9
    clip: float | None = None
    seed: int = 0
    mixed: bool = False

    def rate(self, step: int, steps: int) -> float:
        """The learning rate of step 0..``steps`` - 1."""
        return warm_cosine(self.lr, self.warmup, step, steps, self.final)

    def epoch_seed(self, epoch: int) -> int:
        """The seed of epoch 1, 2, …"""
        return self.seed * 1000 + epoch


def warm_cosine(lr: float, warmup: float, step: int, steps: int, floor: float = 0.0) -> float:
    """That of step 0..``steps`` - 1: it rises linearly to ``lr`` over ``warmup`` (a part of all steps) and falls as a cosine to
    ``floor`` times that (Loshchilov and Hutter 2017, arXiv:1608.03983, without restarts)."""
    rising = max(int(warmup * steps), 1)
    if step < rising:
        return lr * (step + 1) / rising
    return lr * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * (step - rising) / max(steps - rising, 1))))
