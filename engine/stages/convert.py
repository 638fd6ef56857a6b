"""convert: weights to integers, the graph to a program, the program onto this machine's kernels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import fx, nn

from engine.graph.kinds import kind, module_of
from engine.kernels.base import Kernel
from engine.quant.convert import convert as convert_graph
from engine.quant.convert import unit_parameters
from engine.quant.layout import Layout
from engine.quant.numerics import QParams, QWeight, quantize_weight
from engine.quant.runtime import QuantizedModel
from engine.spec import LayerSpec


@dataclass(frozen=True)
class Converted:
    model: QuantizedModel
    grids: Mapping[str, QParams]
    weights: Mapping[str, QWeight]


def round_weights(gm: fx.GraphModule, layout: Layout, specs: Mapping[str, LayerSpec]) -> dict[str, QWeight]:
    """Weights rounded to nearest as each layer's spec asks, by layer node: the units' with their normalization folded
    in, then those of weight-only layers."""
    found = {}
    for unit in layout.units:
        spec = specs[unit.path].weights
        assert spec is not None
        found[unit.layer] = quantize_weight(unit_parameters(gm, unit)[0], spec)
    for node in gm.graph.nodes:
        layer = specs.get(str(node.target)) if kind(node) in ("conv", "linear") else None
        if layer and layer.weights and layer.activations is None:
            found[node.name] = quantize_weight(module_of(node).weight, layer.weights)  # type: ignore[union-attr, arg-type]
    return found


def convert(
    gm: fx.GraphModule, layout: Layout, grids: Mapping[str, QParams], weights: Mapping[str, QWeight], kernels: Sequence[Kernel]
) -> Converted:
    """``gm`` on the CPU and in eval mode; ``grids`` by value class, ``weights`` by layer node."""
    whole: dict[str, nn.Module] = {str(n.target): m for n in gm.graph.nodes if (m := module_of(n)) is not None}
    return Converted(QuantizedModel(convert_graph(gm, layout, grids, weights), kernels, whole), grids, weights)
