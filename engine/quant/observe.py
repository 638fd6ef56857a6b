"""Running a float graph while observers look at the values that will be integers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx

from engine.quant.layout import Layout
from engine.quant.numerics import QParams, affine
from engine.quant.observers import RangeObserver, observer, settled


class Observed(fx.Interpreter):
    """Feeds each value class's observer from its sources; keeps nothing of the values themselves."""

    def __init__(self, gm: fx.GraphModule, layout: Layout) -> None:
        super().__init__(gm)
        self.observers: dict[str, RangeObserver] = {c.name: observer(c.spec) for c in layout.classes}
        self._classes = {c.name: c for c in layout.classes}
        self._watched = {source: c.name for c in layout.classes for source in c.sources}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        name = self._watched.get(n.name)
        if name is not None:
            assert isinstance(value, Tensor)
            self.observers[name].update(value)
        return value

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
