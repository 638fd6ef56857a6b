"""convert: weights to integers, the graph to a program, the program onto this machine's kernels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass

from torch import fx, nn

from engine.events import Event, Notice
from engine.graph.kinds import CONVOLUTIONS, kind, module_of
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


_LAYERS = (*CONVOLUTIONS, nn.Linear)


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
) -> Generator[Event, None, Converted]:
    """``gm`` on the CPU and in eval mode; ``grids`` by value class, ``weights`` by layer node."""
    whole: dict[str, nn.Module] = {str(n.target): m for n in gm.graph.nodes if (m := module_of(n)) is not None}
    model = QuantizedModel(convert_graph(gm, layout, grids, weights), kernels, whole)
    used = Counter(label for label, _ in model.placement.values())
    layers = sum(kind(node) in ("conv", "linear") for node in gm.graph.nodes)
    # Layers inside modules that stayed whole are layers too.
    layers += sum(isinstance(part, _LAYERS) for m in whole.values() if not isinstance(m, _LAYERS) for part in m.modules())
    on = f": {', '.join(f'{label} ×{count}' for label, count in sorted(used.items()))}" if used else ""
    yield Notice(f"{sum(used.values())} of {layers} convolutions and linear layers run on integers{on}", "info" if used else "warning")
    return Converted(model, grids, weights)
