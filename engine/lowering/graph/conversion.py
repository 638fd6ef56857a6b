"""convert: weights to integers, the graph to a program, the program onto this machine's kernels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from engine.algorithms.channelwise import quantize_weight
from engine.events.event import Bins, Event, Notice, WeightRow
from engine.kernels.base import Kernel
from engine.lowering.graph.convert import convert as convert_graph
from engine.lowering.graph.convert import unit_parameters
from engine.lowering.graph.coverage import Coverage, coverage
from engine.lowering.graph.kinds import kind, module_of
from engine.lowering.graph.layout import Layout
from engine.lowering.graph.ranges import BINS
from engine.lowering.graph.runtime import QuantizedModel
from engine.numerics.qparams import QParams
from engine.numerics.qtensor import QTensor
from engine.recipe.spec import LayerSpec, WeightSpec
from engine.tasks.base import Batch


@dataclass(frozen=True)
class Converted:
    model: QuantizedModel
    grids: Mapping[str, QParams]
    weights: Mapping[str, QTensor]
    coverage: Coverage | None = None


_MOST = 0.5  # Of the multiply-adds: with less on integers, speed and size are mostly fp32's.


def round_weights(gm: fx.GraphModule, layout: Layout, specs: Mapping[str, LayerSpec]) -> dict[str, QTensor]:
    """Weights rounded to nearest as each layer's spec asks, by layer node: the units' with their normalization folded
    in, then those of weight-only layers."""
    return {node: quantize_weight(weight, spec) for node, _, weight, spec in _to_round(gm, layout, specs)}


def weight_rows(
    gm: fx.GraphModule, layout: Layout, specs: Mapping[str, LayerSpec], weights: Mapping[str, QTensor]
) -> tuple[WeightRow, ...]:
    """A row for each layer of ``weights``, which are ``round_weights`` of the rest."""
    # A module that is called twice has the same weights twice.
    rows = {path: _weight_row(path, weight.detach().float(), weights[node]) for node, path, weight, _ in _to_round(gm, layout, specs)}
    return tuple(rows.values())


def _to_round(gm: fx.GraphModule, layout: Layout, specs: Mapping[str, LayerSpec]) -> Iterator[tuple[str, str, Tensor, WeightSpec]]:
    """Node, path, float weights and their spec."""
    for unit in layout.units:
        spec = specs[unit.path].weights
        assert spec is not None
        yield unit.layer, unit.path, unit_parameters(gm, unit)[0], spec
    for node in gm.graph.nodes:
        layer = specs.get(str(node.target)) if kind(node) in ("conv", "linear") else None
        if layer and layer.weights and layer.activations is None:
            yield node.name, str(node.target), module_of(node).weight, layer.weights  # type: ignore[union-attr, misc]


def _weight_row(path: str, weight: Tensor, rounded: QTensor) -> WeightRow:
    low, high = (end.item() for end in weight.aminmax())
    step = rounded.channel_scale if rounded.multiplier is None else rounded.channel_scale * rounded.multiplier.amax(1)
    widest = step.max().item()
    ranges = weight.flatten(1).abs().amax(1)
    # Between equal bounds histc looks for others.
    counts = torch.histc(weight, BINS, low, high).tolist() if low < high else [weight.numel(), *[0] * (BINS - 1)]
    bins = Bins(low, (high - low) / BINS or 1.0, tuple(map(int, counts)))
    return WeightRow(
        path,
        low,
        high,
        rounded.format.low * widest,
        rounded.format.high * widest,
        ranges.min().item(),
        ranges.max().item(),
        len(weight),
        bins,
    )


def convert(
    gm: fx.GraphModule,
    layout: Layout,
    grids: Mapping[str, QParams],
    weights: Mapping[str, QTensor],
    kernels: Sequence[Kernel],
    image: Batch | Tensor | None = None,
) -> Generator[Event, None, Converted]:
    """``gm`` on the CPU and in eval mode; ``grids`` by value class, ``weights`` by layer node. How much of it runs on integers is
    counted on one item, ``image``, where that is given."""
    whole: dict[str, nn.Module] = {str(n.target): m for n in gm.graph.nodes if (m := module_of(n)) is not None}
    model = QuantizedModel(convert_graph(gm, layout, grids, weights), kernels, whole)
    used = Counter(label for label, _ in model.placement.values())
    covered = None if image is None else coverage(gm, model, image)
    if covered is not None:
        on = f"; kernels: {', '.join(f'{label} ×{count}' for label, count in sorted(used.items()))}" if used else ""
        yield Notice(f"{covered.sentence()}{on}", "info" if covered.share >= _MOST else "warning")
    return Converted(model, grids, weights, covered)
