"""Branches of a concatenation whose ranges lie far apart, brought near one another before they share one grid.

A concatenation is read on one grid, whose step is that of its widest branch: of a branch 100 times narrower only a few
levels are left. Multiplied by a power of two on the way in, with its columns of the weights that read it divided by the
same number, it keeps its levels and the graph computes exactly what it did. This is cross-layer equalization (Nagel et
al. 2019, arXiv:1906.04721, section 4.1) for blocks of channels, with their balance of activations and weights.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from engine.lowering.graph.kinds import kind, module_of, source, tensor_inputs
from engine.lowering.graph.layout import Layout

APART = 8.0
"""Ranges within this ratio stay on one grid as they are: three of its bits."""
LEAST = 4.0
_LARGEST = 2.0**20
_MANY = 256
_POOLS = ("max_pool", "avg_pool", "adaptive_avg_pool")
# What multiplies each channel by itself: a positive factor goes through.
_THROUGH = ("relu", "identity", *_POOLS, "mean", "pad")
_FLATTENS = ("flatten", "reshape", "view", "squeeze", "unsqueeze")


@dataclass(frozen=True)
class Branch:
    """A narrow input of a concatenation. ``cat`` and ``name`` are nodes, ``index`` is its place among the inputs.

    ``ratio`` is how often its range (largest magnitude) goes into the widest one's. ``factor`` is the power of two that it is
    multiplied by, undone in the weights of the layers at the paths ``layers``; with a ``reason`` it stays as narrow as it is.
    """

    cat: str
    name: str
    index: int
    ratio: float
    factor: float
    layers: tuple[str, ...]
    reason: str | None = None


@dataclass(frozen=True)
class Blocks:
    """Which places along ``axis`` of a value belong to each branch, in the order of the branches."""

    axis: int
    places: tuple[tuple[int, ...], ...]

    def moved(self, times: int = 1, start: int = 0, axis: int | None = None) -> Blocks:
        """With ``times`` places for each, after ``start`` others, along another ``axis``."""
        places = tuple(tuple(start + place * times + i for place in block for i in range(times)) for block in self.places)
        return Blocks(self.axis if axis is None else axis, places)


@dataclass(frozen=True)
class Reader:
    """A layer that reads a concatenation; ``columns`` of its input are those of each branch, in order."""

    node: fx.Node
    columns: tuple[tuple[int, ...], ...]


def cat_inputs(gm: fx.GraphModule, layout: Layout) -> tuple[str, ...]:
    """The nodes that concatenations read, where the result may reach a layer on integers."""
    reached = {unit.layer for unit in layout.units}
    for node in reversed(list(gm.graph.nodes)):
        if kind(node) in (*_THROUGH, "reshape", "cat") and any(user.name in reached for user in node.users):
            reached.add(node.name)
    found = [node for node in gm.graph.nodes if node.name in reached and _parts(node)]
    return tuple(dict.fromkeys(part.name for cat in found for part in _parts(cat)))


def find_branches(gm: fx.GraphModule, layout: Layout, spans: Mapping[str, float]) -> tuple[Branch, ...]:
    """The inputs of concatenations that lie too far apart for one grid. ``spans`` gives each node of ``cat_inputs`` its largest
    magnitude."""
    layers = {unit.layer for unit in layout.units}
    integer = layout.class_of()
    # Of a concatenation within another, the weights are to be judged as they are once the inner one is balanced.
    weights: dict[str, Tensor] = {}
    found = []
    for cat in gm.graph.nodes:
        parts = _parts(cat)
        if not parts or any(part.name not in spans for part in parts):
            continue
        widest = max(range(len(parts)), key=lambda i: spans[parts[i].name])
        for index, part in enumerate(parts):
            top, span = spans[parts[widest].name], spans[part.name]
            # A branch that others read on integers is not to share the wide grid, whatever its part in the concatenation.
            shared = cat.name in integer and any(user is not cat for user in part.users)
            if 0 < span <= top / APART and (branch := _branch(gm, cat, index, widest, top / span, layers, shared, weights)) is not None:
                found.append(branch)
    return tuple(found)


def _branch(
    gm: fx.GraphModule,
    cat: fx.Node,
    index: int,
    widest: int,
    ratio: float,
    layers: Collection[str],
    shared: bool,
    weights: dict[str, Tensor],
) -> Branch | None:
    readers: list[Reader] = []
    reason = _collect(cat, _blocks(cat), layers, readers)
    paths = tuple(dict.fromkeys(str(reader.node.target) for reader in readers))
    name = _parts(cat)[index].name
    if not readers:
        return None
    calls = Counter(str(node.target) for node in gm.graph.nodes if node.op == "call_module")
    twice = next((path for path in paths if calls[path] > 1), None)
    reason = f"{twice} reads other values with the same weights" if twice else reason
    for reader in readers:
        layer: Any = module_of(reader.node)
        weights.setdefault(str(reader.node.target), layer.weight.detach().clone())
    larger = max(_weight_ratio(reader, weights[str(reader.node.target)], index, widest) for reader in readers)
    wanted = min(math.sqrt(ratio * larger), ratio, _LARGEST)
    factor = 2.0 ** math.floor(math.log2(wanted)) if wanted >= 1 else 1.0
    if factor < LEAST and not shared:
        return None
    for reader in readers if reason is None else ():
        _divide(reader, weights[str(reader.node.target)], index, factor)
    return Branch(cat.name, name, index, ratio, 1.0 if reason else factor, paths, reason)


def _divide(reader: Reader, weight: Tensor, index: int, factor: float) -> None:
    """In place, what ``weight`` has for the branch number ``index``."""
    for rows, columns in columns_of(module_of(reader.node), weight, reader.columns[index]):
        weight[rows, columns] = weight[rows, columns] / factor


def _collect(node: fx.Node, blocks: Blocks, layers: Collection[str], readers: list[Reader]) -> str | None:
    """Gather the layers, of the nodes ``layers``, that read ``node``; a sentence where something else does that no factor goes
    through."""
    for user in node.users:
        if user.name in layers and source(user) is node:
            if blocks.axis != (1 if kind(user) == "conv" else len(node.meta["shape"]) - 1):
                return f"{user.target} sums over another dimension than the concatenation's"
            readers.append(Reader(user, blocks.places))
            continue
        through = passed(node, user, blocks)
        if through is None or len(readers) > _MANY:
            return f"{user.name} reads it too"
        problem = _collect(user, through, layers, readers)
        if problem is not None:
            return problem
    return None


def passed(node: fx.Node, user: fx.Node, blocks: Blocks) -> Blocks | None:
    """Where the blocks of ``node`` are in the result of ``user``, None where a factor does not go through it."""
    here, before, after = kind(user), node.meta.get("shape", ()), user.meta.get("shape", ())
    axis = blocks.axis
    if not before or not after:
        return None
    if here in ("relu", "identity") or (here in _POOLS and axis == 1 and after[1] == before[1]):
        return blocks
    if here == "pad" and len(before) == len(after) and axis == 1 and len(_given(user, 1, "pad", ())) <= 2 * (len(before) - 2):
        return blocks
    if here == "mean":
        dims = _given(user, 1, "dim", None)
        dims = [dims] if isinstance(dims, int) else list(dims or range(len(before)))
        dims = [dim % len(before) for dim in dims]
        if axis in dims:
            return None
        return blocks if len(after) == len(before) else blocks.moved(axis=axis - sum(dim < axis for dim in dims))
    if here == "reshape" and axis == 1 and _flattens(user, before, after):
        return blocks.moved(times=math.prod(before[2:]))
    parts = _parts(user)
    if here == "cat" and parts.count(node) == 1 and _axis(user) == axis:
        return blocks.moved(start=sum(part.meta["shape"][axis] for part in parts[: parts.index(node)]))
    return None


def _given(node: fx.Node, position: int, name: str, default: Any) -> Any:
    return node.args[position] if len(node.args) > position else node.kwargs.get(name, default)


def _axis(cat: fx.Node) -> int:
    """The dimension of a concatenation, -1 where it is not known."""
    dim, rank = _given(cat, 1, "dim", cat.kwargs.get("axis", 0)), len(cat.meta.get("shape", ()))
    return dim % rank if isinstance(dim, int) and rank else -1


def _parts(node: fx.Node) -> list[fx.Node]:
    """What a concatenation along a dimension of known size reads, empty for any other node."""
    if kind(node) != "cat":
        return []
    given, axis = _given(node, 0, "tensors", ()), _axis(node)
    if not isinstance(given, tuple | list) or axis < 1:
        return []
    parts = [part for part in given if isinstance(part, fx.Node)]
    known = all(len(shape := part.meta.get("shape", ())) > axis and isinstance(shape[axis], int) for part in parts)
    return parts if known and len(parts) == len(given) and len(parts) > 1 else []


def _blocks(cat: fx.Node) -> Blocks:
    axis = _axis(cat)
    sizes = [part.meta["shape"][axis] for part in _parts(cat)]
    starts = itertools.accumulate(sizes, initial=0)
    return Blocks(axis, tuple(tuple(range(start, start + size)) for start, size in zip(starts, sizes, strict=False)))


def _flattens(node: fx.Node, before: tuple[int | None, ...], after: tuple[int | None, ...]) -> bool:
    """Whether a node joins all dimensions but the first, in their order."""
    called = node.target if node.op == "call_method" else getattr(node.target, "__name__", "")
    name = "flatten" if node.op == "call_module" else str(called)
    inner = before[1:]
    return name in _FLATTENS and len(after) == 2 and None not in inner and after[1] == math.prod(size or 0 for size in inner)


def columns_of(layer: nn.Module | None, weight: Tensor, block: Iterable[int]) -> list[tuple[slice, list[int]]]:
    """The rows of ``weight`` and the columns in them that take the input channels ``block``."""
    groups = int(getattr(layer, "groups", 1))
    width, rows = weight.shape[1], weight.shape[0] // groups
    found: dict[int, list[int]] = {}
    for channel in block:
        found.setdefault(channel // width, []).append(channel % width)
    return [(slice(group * rows, (group + 1) * rows), columns) for group, columns in found.items()]


def _weight_ratio(reader: Reader, weight: Tensor, index: int, widest: int) -> float:
    """How much larger the weights on the narrow branch are than those on the widest: the median over the output channels that
    read both, infinite where none does."""
    tops = torch.zeros(2, len(weight), dtype=weight.dtype)
    for top, block in zip(tops, (reader.columns[index], reader.columns[widest]), strict=True):
        for rows, columns in columns_of(module_of(reader.node), weight, block):
            top[rows] = weight[rows][:, columns].abs().flatten(1).amax(1)
    both = (tops[0] > 0) & (tops[1] > 0)
    return float((tops[0][both] / tops[1][both]).median()) if both.any() else math.inf


def balance(gm: fx.GraphModule, branches: Iterable[Branch]) -> fx.GraphModule:
    """A new graph that computes what ``gm`` does, with the branches without a reason multiplied and the weights of their readers
    divided. The others get a grid of their own where something else reads them. ``gm`` is not changed. All factors are powers
    of two: in floating point nothing is rounded."""
    new = copy.deepcopy(gm)
    nodes = {node.name: node for node in new.graph.nodes}
    chosen = tuple(branches)
    undone = {branch: _readers(nodes, branch) if branch.reason is None else [] for branch in chosen}
    for branch in chosen:
        for reader in undone[branch]:
            layer: Any = module_of(reader.node)
            weight: Tensor = layer.weight.detach().clone()
            _divide(reader, weight, branch.index, branch.factor)
            set_parameters(new, str(reader.node.target), weight=weight)
        cat = nodes[branch.cat]
        if branch.reason is not None and len(nodes[branch.name].users) == 1:
            continue
        if not _scaled_at_its_source(new, cat, branch):
            parts = _parts(cat)
            with new.graph.inserting_before(cat):
                scaled = new.graph.call_function(torch.mul, (parts[branch.index], branch.factor))
            scaled.meta = dict(parts[branch.index].meta)
            given = [scaled if index == branch.index else part for index, part in enumerate(parts)]
            cat.args, cat.kwargs = (given, _axis(cat)), {}
    new.graph.lint()
    new.recompile()
    return new


def _readers(nodes: Mapping[str, fx.Node], branch: Branch) -> list[Reader]:
    layers = {node.name for node in nodes.values() if node.op == "call_module" and str(node.target) in branch.layers}
    readers: list[Reader] = []
    _collect(nodes[branch.cat], _blocks(nodes[branch.cat]), layers, readers)
    return readers


def _scaled_at_its_source(gm: fx.GraphModule, cat: fx.Node, branch: Branch) -> bool:
    """Multiply the layer or normalization that makes the branch, where nothing else sees its result."""
    calls = Counter(str(node.target) for node in gm.graph.nodes if node.op == "call_module")
    parts = _parts(cat)
    node = parts[branch.index]
    if parts.count(node) > 1:
        return False
    while len(node.users) == 1:
        if kind(node) in ("conv", "linear", "bn"):
            module: Any = module_of(node)
            if calls[str(node.target)] > 1 or module.weight is None:
                return False
            bias = None if module.bias is None else module.bias.detach() * branch.factor
            set_parameters(gm, str(node.target), weight=module.weight.detach() * branch.factor, bias=bias)
            return True
        inputs = tensor_inputs(node)
        if kind(node) not in ("relu", "identity", *_POOLS) or len(inputs) != 1:
            return False
        node = inputs[0]
    return False


def set_parameters(gm: fx.GraphModule, path: str, **tensors: Tensor | None) -> None:
    """Other parameters for a copy of the module at ``path``, which takes its place."""
    module = copy.copy(gm.get_submodule(path))
    given = {name: None if value is None else nn.Parameter(value, requires_grad=False) for name, value in tensors.items()}
    module._parameters = {**module._parameters, **given}
    gm.set_submodule(path, module)
