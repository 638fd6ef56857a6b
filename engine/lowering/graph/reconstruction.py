"""What layers and blocks whose rounding is learned have in common: the two forms of the graph, as far as the calibration items are."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from engine.algorithms.registry import Method, method
from engine.events.cancellation import StopToken
from engine.kernels.base import compute
from engine.lowering.graph.convert import unit_parameters
from engine.lowering.graph.fake_quantize import FakeQuantActivation
from engine.lowering.graph.kinds import module_of
from engine.lowering.graph.layout import Layout, Unit, ValueClass
from engine.lowering.graph.streams import Nodes, Stream
from engine.numerics.qparams import QParams
from engine.numerics.qtensor import QTensor
from engine.recipe.spec import LayerSpec

# One chunk in so many is held back for judging.
HELD = 8


def asks(spec: LayerSpec) -> bool:
    """Whether a layer's rounding is to be learned."""
    return spec.weights is not None and bool(method(spec.weights.method).reconstruction)


@dataclass(frozen=True)
class Start:
    """What is to be made better: the fp32 graph ``gm``, and a rounding of it with the float graph ``rounded`` that belongs to it, whose
    biases count. ``weights`` are by layer node, ``grids`` by value class, ``specs`` by module path. ``results`` gives the task's outputs,
    logits of classes, of what the graph returns, where the task has such."""

    gm: fx.GraphModule
    rounded: fx.GraphModule
    layout: Layout
    specs: Mapping[str, LayerSpec]
    grids: Mapping[str, QParams]
    weights: Mapping[str, QTensor]
    results: Callable[[Any], tuple[Tensor, ...]] | None = None


@dataclass(frozen=True)
class Layer:
    """A convolution or linear layer as it is computed: its integers, its bias, and the float module whose geometry it has."""

    module: Any
    weight: QTensor
    held: Tensor
    bias: Tensor | None

    @classmethod
    def of(cls, module: Any, weight: QTensor, bias: Tensor | None) -> Layer:
        return cls(module, weight, weight.dequantize(), bias)

    def __call__(self, x: Tensor) -> Tensor:
        return compute(self.module, x, self.held, self.bias)


class Reconstruction:
    """``exact`` and ``rounded`` are the values of the fp32 graph and of the quantized one; ``layers`` and ``activations`` are the latter's
    layers by node and grids by value class, which are replaced as they are learned. Chunks of items that are ``held`` judge, others are
    ``seen``."""

    def __init__(self, start: Start, chunks: Sequence[tuple[Tensor, ...]], stop: StopToken) -> None:
        self.start, self.stop, self.gm = start, stop, start.gm
        self.nodes = {node.name: node for node in start.gm.graph.nodes}
        self.units: dict[str, Unit] = {unit.layer: unit for unit in start.layout.units}
        self.notes: dict[str, str] = {}
        self.learned: set[str] = set()
        self.layers: dict[str, Layer] = {
            name: Layer.of(self.module(name), weight, self._parameters(start.rounded, name)[1]) for name, weight in start.weights.items()
        }
        self.activations = {c.name: FakeQuantActivation(start.grids[c.name]) for c in start.layout.classes}
        self.sources = {source: self.activations[c.name] for c in start.layout.classes for source in c.sources}
        self.folded = frozenset(unit.bn for unit in start.layout.units if unit.bn)
        self.exact = Stream(start.gm, chunks, Nodes(start.gm))
        self.rounded = Stream(start.gm, chunks, Nodes(start.gm, self.layers, self.folded, self.sources))
        with torch.no_grad():
            for node, values in self.rounded.values.items():
                if node.name in self.sources:
                    values[:] = [self.sources[node.name](value) for value in values]
        self.held = tuple(chunk for chunk in range(len(chunks)) if chunk % HELD == HELD - 1)
        self.seen = tuple(chunk for chunk in range(len(chunks)) if chunk % HELD != HELD - 1)

    def module(self, name: str) -> Any:
        return module_of(self.nodes[name])

    def how(self, name: str) -> Method | None:
        """The method that the layer node's spec names."""
        spec = self.start.specs.get(str(self.nodes[name].target))
        return method(spec.weights.method) if spec and spec.weights else None

    def alone(self, name: str) -> bool:
        """Whether the module of the layer node is called by no other: what is learned of one call would be wrong for the other."""
        target = str(self.nodes[name].target)
        return [str(node.target) for node in self.nodes.values() if node.op == "call_module"].count(target) == 1

    def parameters(self, name: str) -> tuple[Tensor, Tensor | None]:
        """Weight and bias of the fp32 layer, its normalization folded in."""
        return self._parameters(self.gm, name)

    def _parameters(self, gm: fx.GraphModule, name: str) -> tuple[Tensor, Tensor | None]:
        if name in self.units:
            return unit_parameters(gm, self.units[name])
        module: Any = gm.get_submodule(str(self.nodes[name].target))
        return module.weight.detach(), None if module.bias is None else module.bias.detach()

    def classes_in(self, nodes: Sequence[fx.Node]) -> tuple[ValueClass, ...]:
        """The value classes all of whose values are set among ``nodes``."""
        own = {node.name for node in nodes}
        return tuple(c for c in self.start.layout.classes if c.sources and set(c.sources) <= own)

    def take(self, layers: Mapping[str, Layer]) -> None:
        self.layers.update(layers)
        self.learned.update(layers)
