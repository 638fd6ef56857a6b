"""Observers on the values of all islands, while the whole model runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, fx

from engine.lowering.graph.layout import Layout
from engine.lowering.graph.observe import Observed, Reader
from engine.lowering.islands.union import Part
from engine.models.memory import laid_out


class ObservedIslands(Observed):
    """``Observed`` of a union of islands, each of which runs on its own inputs, as often as it is called."""

    def __init__(self, union: fx.GraphModule, parts: Sequence[Part], layout: Layout, counting: bool, readers: Mapping[str, Reader]) -> None:
        self._parts = parts
        super().__init__(union, layout, counting=counting, readers=readers)

    def _looking(self, gm: fx.GraphModule) -> fx.GraphModule:
        self._graphs = [super(ObservedIslands, self)._looking(part.graph) for part in self._parts]
        return gm

    def called(self, island: int, inputs: tuple[Tensor, ...]) -> None:
        """One call of an island, on its inputs in order."""
        self._images = max((len(x) for x in inputs if x.dim()), default=1)
        with torch.inference_mode():
            self._graphs[island].forward(*laid_out(inputs))

    def settle(self) -> None:
        """The end of a batch: what is looked at once a batch is looked at."""
        for producer, ends in self._pending.items():
            self.observers[self._class_of[producer]].update(torch.tensor(ends))
        self._pending.clear()
