"""The noise of each integer layer, with all layers before it and alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from engine.events.cancellation import StopToken
from engine.lowering.graph.call import inputs_of
from engine.lowering.graph.kinds import in_place
from engine.lowering.graph.layout import Layout, Unit
from engine.lowering.graph.runtime import QuantizedModel
from engine.numerics.qparams import QParams, dequantize
from engine.numerics.sqnr import sqnr_db
from engine.tasks.base import Task


@dataclass(frozen=True)
class LayerNoise:
    """SQNR in dB at a unit's output: ``sqnr_db`` against the fp32 model, with the errors of all layers before it;
    ``own_sqnr_db`` with this layer's errors alone, against its float form on the inputs that it got."""

    sqnr_db: float
    own_sqnr_db: float


def layer_sqnr(
    gm: fx.GraphModule, rounded: fx.GraphModule, layout: Layout, grids: Mapping[str, QParams], model: QuantizedModel, task: Task,
    stop: StopToken, items: int = 128,
) -> dict[str, LayerNoise]:  # fmt: skip
    """The noise of each unit on validation items, by layer node. ``gm`` is the fp32 model, ``rounded`` the float graph that
    ``model`` is the rounding of: ``gm`` itself, or as it was trained."""
    noise = Noise(gm, rounded, layout, grids, model, stop)
    with torch.inference_mode():
        for batch in task.batches("validation", batch=64, limit=items):
            stop.check()
            noise.add(inputs_of(gm, batch.laid_out()))
    return noise.found()


class Noise:
    """Sums over inputs of a graph; the arguments are those of ``layer_sqnr``."""

    def __init__(
        self, gm: fx.GraphModule, rounded: fx.GraphModule, layout: Layout, grids: Mapping[str, QParams], model: QuantizedModel,
        stop: StopToken,
    ) -> None:  # fmt: skip
        self._gm, self._layout, self._grids, self._model, self._stop = gm, layout, grids, model, stop
        self._sums = {unit.layer: [0.0] * 4 for unit in layout.units}
        self._class_of = layout.class_of()
        self._units = _Units(rounded)

    def add(self, inputs: tuple[Tensor, ...]) -> None:
        """Take in what the units compute of the graph's inputs in order. Raises Cancelled on stop."""
        exact = _Values(self._gm, {unit.output for unit in self._layout.units})
        exact.run(*inputs)
        got = self._model.watch(*inputs)

        def held(name: str) -> Tensor:
            integers = got.get(f"{name}:q")
            return got[name] if integers is None else dequantize(integers, self._grids[self._class_of[name].name])

        for unit in self._layout.units:
            self._stop.check()
            wanted, seen = exact.values.pop(unit.output), held(unit.output)
            alone = self._units.run_unit(unit, {name: held(name) for name in (unit.input, unit.other) if name})
            for i, part in enumerate((wanted, wanted - seen, alone, alone - seen)):
                self._sums[unit.layer][i] += _power(part)

    def found(self) -> dict[str, LayerNoise]:
        """By layer node."""
        return {name: LayerNoise(sqnr_db(*s[:2]), sqnr_db(*s[2:])) for name, s in self._sums.items()}


def _power(x: Tensor) -> float:
    """The sum of squares, added up in doubles."""
    return float(torch.linalg.vector_norm(x, dtype=torch.float64).item() ** 2)


class _Units(fx.Interpreter):
    """Runs a unit's nodes alone."""

    def __init__(self, gm: fx.GraphModule) -> None:
        super().__init__(gm)
        self._nodes = {node.name: node for node in gm.graph.nodes}

    def run_unit(self, unit: Unit, inputs: Mapping[str, Tensor]) -> Tensor:
        """The unit's output in float; ``inputs`` by node name."""
        self.env = {self._nodes[name]: value for name, value in inputs.items()}
        for name in unit.nodes():
            self.env[self._nodes[name]] = self.run_node(self._nodes[name])
        result: Tensor = self.env[self._nodes[unit.output]]
        self.env = {}
        return result


class _Values(fx.Interpreter):
    def __init__(self, gm: fx.GraphModule, wanted: set[str]) -> None:
        super().__init__(gm)
        self._wanted = wanted
        self.values: dict[str, Tensor] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n.name in self._wanted:
            changed = any(in_place(user) and user.all_input_nodes[0] is n for user in n.users)
            self.values[n.name] = value.clone() if changed else value
        return value
