"""Running a float graph while observers look at the values that will be integers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx

from engine.quant.histogram import Histogram
from engine.quant.layout import Layout
from engine.quant.numerics import QParams, affine
from engine.quant.observers import RangeObserver, observer, settled

SAMPLE = 2**16


class Observed(fx.Interpreter):
    """Feeds each value class's observer from its sources; keeps nothing of the values themselves.

    With ``counting`` each class has its histogram too: its observer's, or one of about ``SAMPLE`` values of each batch.
    """

    def __init__(self, gm: fx.GraphModule, layout: Layout, counting: bool = False) -> None:
        super().__init__(gm)
        self.observers: dict[str, RangeObserver] = {c.name: observer(c.spec) for c in layout.classes}
        self._extra = {name: Histogram() for name, seen in self.observers.items() if counting and seen.histogram is None}
        self._classes = {c.name: c for c in layout.classes}
        self._watched = {source: c.name for c in layout.classes for source in c.sources}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        name = self._watched.get(n.name)
        if name is not None:
            assert isinstance(value, Tensor)
            self.observers[name].update(value)
            if name in self._extra:
                self._extra[name].update(sample(value))
        return value

    def histogram(self, name: str) -> Histogram:
        """That of a class; KeyError where nothing counts its values."""
        return self.observers[name].histogram or self._extra[name]

    def batch(self, x: Tensor) -> None:
        """One calibration batch (N, C, H, W), on the graph's device."""
        with torch.inference_mode():
            self.run(x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x)

    def grids(self) -> Mapping[str, QParams]:
        """The grid of each class. Raises EngineError when a value was never finite."""
        found = {}
        for name, seen in self.observers.items():
            spec = self._classes[name].spec
            found[name] = affine(*settled(seen, spec.bits, f"the output of {name}"), spec.bits, spec.symmetric)
        return found


def sample(x: Tensor) -> Tensor:
    """At most ``SAMPLE`` values of ``x``, 1-d, evenly from all channels and places; all where there are no more."""
    # In the order of the memory, so that nothing is copied; a stride that shares no factor with the count meets every channel.
    flat = (x.permute(0, 2, 3, 1) if x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last) else x).reshape(-1)
    count = len(flat)
    stride = max(-(-count // SAMPLE), 1)
    while math.gcd(stride, count) > 1:
        stride += 1
    return flat[::stride]
