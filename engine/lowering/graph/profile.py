"""What each node of a graph takes of the fp32 time, and how large its value is."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from engine.lowering.graph.call import inputs_of
from engine.machine.repeats import passes
from engine.models.memory import laid_out
from engine.tasks.base import Batch


class _Timed(fx.Interpreter):
    def __init__(self, gm: fx.GraphModule) -> None:
        super().__init__(gm)
        self.seconds: dict[str, list[float]] = {}
        self.sizes: dict[str, tuple[int, ...]] = {}

    def run_node(self, n: fx.Node) -> Any:
        start = time.perf_counter()
        value = super().run_node(n)
        self.seconds.setdefault(n.name, []).append(time.perf_counter() - start)
        if isinstance(value, Tensor):
            self.sizes[n.name] = tuple(value.shape)
        return value


@dataclass(frozen=True)
class Profile:
    """By node name: its part (0..1) of the fp32 time, and the size of its value where that is a tensor."""

    shares: dict[str, float]
    sizes: dict[str, tuple[int, ...]]


def profile(gm: fx.GraphModule, x: Batch | Tensor) -> Profile:
    """``gm`` on ``x``, node by node; times are medians of a few passes, which one that was disturbed does not move."""
    timed = _Timed(gm)
    inputs = laid_out(inputs_of(gm, x))
    with torch.inference_mode():
        for number in passes():
            timed.run(*inputs)
            if not number:
                timed.seconds.clear()
    medians = {name: statistics.median_low(times) for name, times in timed.seconds.items()}
    return Profile({name: value / sum(medians.values()) for name, value in medians.items()}, timed.sizes)
