"""Running a float graph while observers look at the values that will be integers."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Protocol

import torch
from torch import Tensor, fx, nn

from engine.lowering.graph.kinds import source
from engine.lowering.graph.layout import Layout
from engine.machine import ranks
from engine.models.memory import laid_out
from engine.numerics.histogram import Histogram, extremes
from engine.numerics.memory import as_it_lies
from engine.numerics.observers import RangeObserver, merged, observer, settled
from engine.numerics.qparams import QParams, affine

SAMPLE = 2**16


class Reader(Protocol):
    """Takes in what a layer reads, and of how many items, from the layer node that ``caller`` names."""

    turn: int

    def add(self, x: Tensor, items: int, caller: str = "") -> None: ...

    def skip(self, items: int, caller: str = "") -> None: ...


class Observed:
    """Feeds each value class's observer from its sources; keeps nothing of the values themselves.

    ``gm`` is not changed, its modules are shared. With ``counting`` each class has its histogram too: its observer's, or
    one of about ``SAMPLE`` values of each batch. ``at_once`` images run through the graph together, all of a batch by default:
    fewer need less memory and change no range. ``readers`` are given what each layer node reads, and of how many images.
    """

    def __init__(
        self,
        gm: fx.GraphModule,
        layout: Layout,
        counting: bool = False,
        at_once: int | None = None,
        readers: Mapping[str, Reader] | None = None,
    ) -> None:
        self._at_once, self._images = at_once, 0
        self._readers = dict(readers or {})
        part = ranks.several()
        self.observers: dict[str, RangeObserver] = {c.name: observer(c.spec, part) for c in layout.classes}
        self._extra = {name: Histogram(part) for name, seen in self.observers.items() if counting and seen.histogram is None}
        self._classes = {c.name: c for c in layout.classes}
        self._class_of = {name: c.name for c in layout.classes for name in c.sources}
        self._pending: dict[str, list[float]] = {}
        self._graph = self._looking(gm)

    def _looking(self, gm: fx.GraphModule) -> fx.GraphModule:
        """The graph with a look at each watched value before anything changes it. It runs as code, which frees a value where it
        was last read; an interpreter's bookkeeping would cost as much as a small layer."""
        graph = copy.deepcopy(gm.graph)
        looking = fx.GraphModule(gm, graph)
        for before, node in zip(gm.graph.nodes, list(graph.nodes), strict=True):
            read = source(node) if before.name in self._readers else None
            if read is not None:
                looking.add_submodule(f"read_{before.name}", _Look(partial(self._read, before.name)))
                with graph.inserting_before(node):
                    graph.call_module(f"read_{before.name}", (read,))
            if before.name in self._class_of:
                path = f"look_{before.name}"
                looking.add_submodule(path, _Look(partial(self._see, before.name)))
                with graph.inserting_after(node):
                    graph.call_module(path, (node,))
        looking.recompile()
        return looking

    def _read(self, layer: str, value: Tensor) -> None:
        self._readers[layer].add(value, self._images, layer)

    def _see(self, producer: str, value: Tensor) -> None:
        name = self._class_of[producer]
        if self.observers[name].batchwise:
            self._pending.setdefault(producer, []).extend(extremes(value))
        else:
            self.observers[name].update(value)
        if name in self._extra:
            self._extra[name].update(sample(value))

    def histogram(self, name: str) -> Histogram:
        """That of a class; KeyError where nothing counts its values."""
        return self.observers[name].histogram or self._extra[name]

    def batch(self, *inputs: Tensor, count: int | None = None) -> None:
        """One calibration batch of ``count`` items, on the graph's device: the graph's inputs in order, each (N, ...) or the same
        for all items."""
        count = len(inputs[0]) if count is None else count
        with torch.inference_mode():
            for start in range(0, count, self._at_once or count):
                places = slice(start, start + (self._at_once or count))
                self._images = min(count, places.stop) - start
                # Not called as a module, which would print the code beside an error.
                self._graph.forward(*laid_out([x[places] if x.dim() and len(x) == count else x for x in inputs]))
        for producer, ends in self._pending.items():
            self.observers[self._class_of[producer]].update(torch.tensor(ends))
        self._pending.clear()

    def turn(self, index: int) -> None:
        """What comes next is batch ``index`` of all."""
        for seen in self.observers.values():
            seen.at(index)
        for counted in self._extra.values():
            counted.turn = index
        for reader in self._readers.values():
            reader.turn = index

    def skip(self, count: int) -> None:
        """A batch of ``count`` items that another rank looks at."""
        for start in range(0, count, self._at_once or count):
            for layer, reader in self._readers.items():
                reader.skip(min(count - start, self._at_once or count), layer)

    def merge(self) -> None:
        """Take in what the other ranks have seen: what one process would have of all batches, bit for bit."""
        if not ranks.several():
            return
        found = ranks.gathered((self.observers, self._extra))
        for name in self.observers:
            self.observers[name] = merged(self._classes[name].spec, [observers[name] for observers, _ in found])
        for name in self._extra:
            self._extra[name] = Histogram.merged([extra[name] for _, extra in found])

    def grids(self) -> Mapping[str, QParams]:
        """The grid of each class. Raises EngineError when a value was never finite."""
        found = {}
        for name, seen in self.observers.items():
            spec = self._classes[name].spec
            found[name] = affine(*settled(seen, spec.bits, f"the output of {name}"), spec.bits, spec.symmetric)
        return found


class _Look(nn.Module):
    def __init__(self, see: Callable[[Tensor], None]) -> None:
        super().__init__()
        self._see = see

    def forward(self, value: Tensor) -> None:
        self._see(value)


def sample(x: Tensor) -> Tensor:
    """At most ``SAMPLE`` values of ``x``, 1-d, evenly from all channels and places; all where there are no more."""
    # A stride that shares no factor with the count meets every channel.
    flat = as_it_lies(x)
    count = len(flat)
    stride = max(-(-count // SAMPLE), 1)
    while math.gcd(stride, count) > 1:
        stride += 1
    return flat[::stride]
