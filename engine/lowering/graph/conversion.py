"""convert: weights to integers, the graph to a program, the program onto this machine's kernels."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn

from engine.algorithms.channelwise import quantize_weight
from engine.algorithms.layer import LayerQuantized, quantize_layer
from engine.algorithms.patches import PatchMoments, bytes_of
from engine.algorithms.registry import method
from engine.events.cancellation import StopToken
from engine.events.event import Bins, Event, Notice, WeightRow
from engine.events.progress import Ticker
from engine.kernels.base import Kernel
from engine.lowering.graph.convert import convert as convert_graph
from engine.lowering.graph.convert import unit_parameters
from engine.lowering.graph.coverage import Coverage, coverage
from engine.lowering.graph.kinds import kind, module_of
from engine.lowering.graph.layer_rounding import patching_of
from engine.lowering.graph.layout import Layout
from engine.lowering.graph.ranges import BINS
from engine.lowering.graph.reconstruct import Reconstructed
from engine.lowering.graph.runtime import QuantizedModel
from engine.machine import ranks
from engine.numerics.qparams import QParams
from engine.numerics.qtensor import QTensor, per_channel
from engine.numerics.weights import WeightQParams
from engine.recipe.spec import LayerSpec, WeightSpec
from engine.tasks.base import Batch


@dataclass(frozen=True)
class Converted:
    model: QuantizedModel
    grids: Mapping[str, QParams]
    weights: Mapping[str, QTensor]
    coverage: Coverage | None = None


# Bytes of the moments that one calibration gathers.
BUDGET = 8 * 2**30
# Steps from its integer that a weight of the float graph lies away at most: less than half, so that it is rounded to it again.
INSIDE = 0.45
_MOST = 0.5  # Of the multiply-adds: with less on integers, speed and size are mostly fp32's.


def round_weights(gm: fx.GraphModule, layout: Layout, specs: Mapping[str, LayerSpec]) -> dict[str, QTensor]:
    """Weights rounded to nearest as each layer's spec asks, by layer node: the units' with their normalization folded
    in, then those of weight-only layers."""
    return {node: quantize_weight(weight, spec) for node, _, weight, spec in _to_round(gm, layout, specs)}


@dataclass(frozen=True)
class RoundedWeights:
    """By layer node. ``graph`` is the float graph that the integers belong to: the biases hold what they take up, and each weight
    that was not rounded to nearest lies where it is."""

    weights: Mapping[str, QTensor]
    notes: Mapping[str, str]
    graph: fx.GraphModule


def watched(gm: fx.GraphModule, layout: Layout, specs: Mapping[str, LayerSpec], items: int) -> dict[str, PatchMoments]:
    """What is to be gathered of ``items`` calibration items, by layer node, for the layers whose method looks at inputs. A module
    that is called twice has one sum. No more than ``BUDGET`` bytes altogether: the widest layers go without."""
    asked: dict[str, tuple[int, Callable[[], PatchMoments]]] = {}
    paths: dict[str, str] = {}
    for node, path, weight, spec in _to_round(gm, layout, specs):
        if method(spec.method).needs_inputs:
            paths[node] = path
            patching, inputs = patching_of(gm.get_submodule(path)), weight[0].numel()
            asked.setdefault(path, (bytes_of(patching.groups, inputs), partial(PatchMoments, patching, inputs, items, seed=len(asked))))
    found: dict[str, PatchMoments] = {}
    left = BUDGET
    for path, (size, moments) in sorted(asked.items(), key=lambda item: item[1][0]):
        left -= size
        if left >= 0:
            found[path] = moments()
    return {node: found[path] for node, path in paths.items() if path in found}


def merge(inputs: Mapping[str, PatchMoments]) -> None:
    """Put together what the ranks have gathered of ``watched``: sums are added up in float64."""
    if not ranks.several():
        return
    for moments in {id(moments): moments for moments in inputs.values()}.values():
        held = [one for several in ranks.gathered(moments.held) for one in several]
        count = sum(ranks.gathered(moments.count))
        moments.take(ranks.total(moments.xx.cpu()), ranks.total(moments.sums.cpu()), count, held)


def round_layers(
    gm: fx.GraphModule, layout: Layout, specs: Mapping[str, LayerSpec], inputs: Mapping[str, PatchMoments], stop: StopToken
) -> Generator[Event, None, RoundedWeights]:
    """Weights on integers as each layer's spec asks, ``inputs`` (of ``watched``) being what their layers read. Yields Progress;
    raises EngineError for weights that are not finite, Cancelled on stop."""
    asked = list(_to_round(gm, layout, specs))
    ticker = Ticker("convert", len(asked), "layers", clock=stop.clock) if inputs else None
    weights: dict[str, QTensor] = {}
    notes: dict[str, str] = {}
    done: dict[str, LayerQuantized] = {}
    moved = _Moved(gm, layout)
    known = yield from _shared_out(asked, inputs, moved, stop)
    for index, (node, path, weight, spec) in enumerate(asked):
        stop.check()
        how = method(spec.method).beginning
        if path not in done or not how.needs_inputs:
            done[path] = known[index] if index in known else _one_rounded(node, weight, spec, inputs, moved)
            if how.needs_inputs:
                if node not in inputs:
                    done[path] = replace(done[path], note=f"{how.title} would need {_giga(BUDGET)} for inputs: rounded to nearest")
                moved.move(node, done[path])
        weights[node] = done[path].weight
        if note := done[path].note:
            notes[node] = note
        if ticker:
            yield from ticker.advance()
    return RoundedWeights(weights, notes, moved.graph)


def _one_rounded(node: str, weight: Tensor, spec: WeightSpec, inputs: Mapping[str, PatchMoments], moved: _Moved) -> LayerQuantized:
    grams = inputs[node].grams() if node in inputs else ()
    return quantize_layer(weight.cpu(), spec, method(spec.method).beginning, grams, moved.has_bias(node))


def _shared_out(
    asked: Sequence[tuple[str, str, Tensor, WeightSpec]], inputs: Mapping[str, PatchMoments], moved: _Moved, stop: StopToken
) -> Generator[Event, None, dict[int, LayerQuantized]]:
    """Where several ranks work, the layers whose rounding takes time, each rounded by one of them: by their places in ``asked``."""
    if not ranks.several():
        return {}
    first: dict[str, int] = {}
    for index, (_, path, _, spec) in enumerate(asked):
        if method(spec.method).beginning.needs_inputs:
            first.setdefault(path, index)
    # The largest first, so that none is left with two of them.
    turns = sorted(first.values(), key=lambda index: (-asked[index][2].numel(), index))
    ticker = Ticker("convert", len(turns), "layers", clock=stop.clock)
    own: dict[int, LayerQuantized] = {}
    for turn, index in enumerate(turns):
        stop.check()
        if ranks.mine(turn):
            node, _, weight, spec = asked[index]
            own[index] = _one_rounded(node, weight, spec, inputs, moved)
        yield from ticker.advance()
    return {index: found for several in ranks.gathered(own) for index, found in several.items()}


def _giga(size: int) -> str:
    return f"more than {size / 2**30:.0f} GiB"


def learned(gm: fx.GraphModule, layout: Layout, rounded: RoundedWeights, found: Reconstructed) -> RoundedWeights:
    """``rounded`` with what was learned after it; ``gm`` is the float graph that both are of."""
    moved = _Moved(copy.deepcopy(rounded.graph), layout, own=True)
    for node, weight in found.weights.items():
        moved.restore(node, gm)
        moved.move(node, LayerQuantized(weight, found.shifts.get(node)))
    return RoundedWeights({**rounded.weights, **found.weights}, {**rounded.notes, **found.notes}, moved.graph)


class _Moved:
    """``graph`` is a copy of a float graph once anything was moved in it; with ``own`` it is moved itself."""

    def __init__(self, gm: fx.GraphModule, layout: Layout, own: bool = False) -> None:
        self.graph, self._own = gm, own
        self._norms = {unit.layer: unit.bn for unit in layout.units if unit.bn}

    def _module(self, node: str) -> nn.Module:
        module = module_of(next(n for n in self.graph.graph.nodes if n.name == node))
        assert module is not None
        return module

    def has_bias(self, node: str) -> bool:
        return node in self._norms or self._module(node).bias is not None

    @torch.no_grad()
    def restore(self, node: str, gm: fx.GraphModule) -> None:
        """The layer's parameters, and those of its normalization, as they are in ``gm``."""
        targets = {n.name: str(n.target) for n in gm.graph.nodes}
        for name in filter(None, (node, self._norms.get(node))):
            self.graph.get_submodule(targets[name]).load_state_dict(gm.get_submodule(targets[name]).state_dict())

    @torch.no_grad()
    def move(self, node: str, rounded: LayerQuantized) -> None:
        if not self._own:
            self.graph, self._own = copy.deepcopy(self.graph), True
        layer: Any = self._module(node)
        norm: Any = self._module(self._norms[node]) if node in self._norms else None
        factor = torch.ones(len(layer.weight)) if norm is None else torch.rsqrt(norm.running_var + norm.eps)
        factor = factor if norm is None or not norm.affine else factor * norm.weight
        safe = torch.where(factor == 0, torch.ones_like(factor), factor)
        if rounded.shift is not None and norm is None:
            layer.bias.add_(rounded.shift)
        elif rounded.shift is not None:
            # Not its bias: in training the normalization finds the mean of what the integers give by itself.
            norm.running_mean.sub_(rounded.shift / safe)
        step = WeightQParams.of(rounded.weight).columns(layer.weight[0].numel())[0].reshape(layer.weight.shape)
        middle, along = rounded.weight.dequantize(), per_channel(safe, layer.weight.dim())
        layer.weight.copy_((layer.weight * along).clamp(middle - INSIDE * step, middle + INSIDE * step) / along)


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
