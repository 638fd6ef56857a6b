"""Graphs that serve sequences of every length: the lengths of the example become sizes of the inputs.

A trace holds the length of token sequences as a plain number wherever a forward reads it. The model is recorded again on other lengths;
where the graphs are the same but for numbers that follow the lengths on a straight line, these are computed from the inputs' sizes.
The result is held against the model on further lengths before it is taken.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils._pytree import tree_flatten, tree_unflatten

from engine.lowering.graph.call import Call
from engine.numerics.memory import content

Arguments = tuple[tuple[Any, ...], dict[str, Any]]
# A second sequence, of a decoder, has a length of its own.
_DECODER = "decoder_"
_SHORTEST = 4


@dataclass(frozen=True)
class Length:
    """A length that inputs have in common: ``places`` are theirs among the tensors of the arguments, ``size`` is the example's."""

    places: tuple[int, ...]
    size: int


def lengths(call: Call, inputs: Sequence[Tensor]) -> tuple[Length, ...]:
    """The lengths of ``inputs`` that hold token ids, masks or positions (N, length): integers and booleans."""
    found: dict[tuple[int, bool], list[int]] = {}
    for place, (given, value) in enumerate(zip(call.inputs, inputs, strict=True)):
        if not value.is_floating_point() and value.dim() == 2 and given.shape[0] is None and value.size(1) >= _SHORTEST:
            found.setdefault((value.size(1), given.name.startswith(_DECODER)), []).append(place)
    return tuple(Length(tuple(places), size) for (size, _), places in found.items())


def open_lengths(call: Call, inputs: Sequence[Tensor]) -> tuple[Length, ...]:
    """Those of ``lengths`` that the program of ``call`` takes in every size."""
    free = (length for length in lengths(call, inputs))
    return tuple(length for length in free if all(call.inputs[place].shape[1:] == (None,) for place in length.places))


def resized(call: Call, example: Arguments, some: Sequence[Length], sizes: Sequence[int]) -> Arguments:
    """The arguments with other lengths: their sequences cut, or repeated and cut."""
    new = {place: size for length, size in zip(some, sizes, strict=True) for place in length.places}
    order = [id(value) for value in call.flatten(*example)]
    leaves, spec = tree_flatten(example)
    changed = [_to(leaf, new[order.index(id(leaf))]) if id(leaf) in order and order.index(id(leaf)) in new else leaf for leaf in leaves]
    args, kwargs = tree_unflatten(changed, spec)
    return args, kwargs


def _to(value: Tensor, size: int) -> Tensor:
    return value.repeat(1, -(-size // value.size(1)))[:, :size].contiguous()


def others(some: Sequence[Length]) -> list[tuple[int, ...]]:
    """For each length, sizes of which it alone differs from the example."""
    base = [length.size for length in some]
    return [tuple(size - 1 if i == which else size for i, size in enumerate(base)) for which in range(len(some))]


def trials(some: Sequence[Length]) -> list[tuple[int, ...]]:
    """Sizes to hold a graph against its model on: shorter, longer, and of a decoder one token."""
    found = [tuple(max(length.size + step + i, 2) for i, length in enumerate(some)) for step in (-2, 1, 3)]
    # Longer than the windows of local attention.
    found.append(tuple(4 * length.size + i for i, length in enumerate(some)))
    half = tuple(max(length.size // 2 - i, 2) for i, length in enumerate(some))
    return [*found, half, *([(*half[:-1], 1)] if len(some) > 1 else [])]


def freed(first: fx.GraphModule, rest: Sequence[fx.GraphModule], some: Sequence[Length]) -> fx.GraphModule | None:
    """``first`` with its lengths taken from the inputs, from recordings on the sizes of ``others``; None where they are not alike but
    for numbers that follow the lengths."""
    graphs = [list(gm.graph.nodes) for gm in (first, *rest)]
    if any(len(nodes) != len(graphs[0]) for nodes in graphs):
        return None
    places = [{node: i for i, node in enumerate(nodes)} for nodes in graphs]
    sizes = _Sizes(first.graph, some)
    changes: list[tuple[fx.Node, Any, Any]] = []
    try:
        for alike in zip(*graphs, strict=True):
            _same_target(alike, (first, *rest))
            args = _merged([node.args for node in alike], places, sizes)
            changes.append((alike[0], args, _merged([node.kwargs for node in alike], places, sizes)))
    except _UnlikeError:
        return None
    for node, args, kwargs in changes:
        node.args, node.kwargs = args, kwargs
    first.graph.lint()
    first.recompile()
    return first


class _UnlikeError(Exception):
    pass


class _Sizes:
    """Numbers that follow the lengths, as nodes of a graph; each is made once, behind the inputs."""

    def __init__(self, graph: fx.Graph, some: Sequence[Length]) -> None:
        self._graph, self._some = graph, some
        self._inputs = [node for node in graph.nodes if node.op == "placeholder"]
        self._made: dict[Any, fx.Node] = {}
        self._last = self._inputs[-1]

    def number(self, base: int, steps: Sequence[int]) -> fx.Node:
        """``base`` at the example's lengths, and ``steps`` less where one of them is one less."""
        slopes = [base - value for value in steps]
        rest = base - sum(slope * length.size for slope, length in zip(slopes, self._some, strict=True))
        whole: fx.Node | None = None
        for which, slope in enumerate(slopes):
            if slope:
                part = self._make(("size", which), "call_method", "size", (self._inputs[self._some[which].places[0]], 1))
                if slope != 1:
                    part = self._make(("mul", which, slope), "call_function", operator.mul, (part, slope))
                whole = part if whole is None else self._make(("add", whole, part), "call_function", operator.add, (whole, part))
        assert whole is not None
        return self._make(("add", whole, rest), "call_function", operator.add, (whole, rest)) if rest else whole

    def _make(self, key: Any, op: str, target: Any, args: tuple[Any, ...]) -> fx.Node:
        if key not in self._made:
            with self._graph.inserting_after(self._last):
                self._last = self._made[key] = self._graph.create_node(op, target, args)
        return self._made[key]


def _same_target(alike: Sequence[fx.Node], modules: Sequence[fx.GraphModule]) -> None:
    first = alike[0]
    if any(node.op != first.op for node in alike):
        raise _UnlikeError
    constants = [getattr(gm, str(node.target), None) for node, gm in zip(alike, modules, strict=True)] if first.op == "get_attr" else []
    if constants and str(first.target).startswith("_tensor_constant"):
        if not all(_equal(value, constants[0]) for value in constants):
            raise _UnlikeError
    elif any(node.target != first.target for node in alike):
        raise _UnlikeError


def _equal(a: Any, b: Any) -> bool:
    return isinstance(a, Tensor) and isinstance(b, Tensor) and a.shape == b.shape and a.dtype == b.dtype and content(a) == content(b)


def _merged(values: Sequence[Any], places: Sequence[dict[fx.Node, int]], sizes: _Sizes) -> Any:
    """What several recordings give as an argument, as one."""
    first = values[0]
    if isinstance(first, fx.Node):
        found = [where.get(value) if isinstance(value, fx.Node) else None for value, where in zip(values, places, strict=True)]
        if None in found or len(set(found)) != 1:
            raise _UnlikeError
        return first
    if any(type(value) is not type(first) for value in values):
        raise _UnlikeError
    if isinstance(first, tuple | list):
        if any(len(value) != len(first) for value in values):
            raise _UnlikeError
        parts = [_merged(part, places, sizes) for part in zip(*values, strict=True)]
        return type(first)(*parts) if hasattr(first, "_fields") else type(first)(parts)
    if isinstance(first, dict):
        if any(value.keys() != first.keys() for value in values):
            raise _UnlikeError
        return {key: _merged([value[key] for value in values], places, sizes) for key in first}
    if isinstance(first, slice):
        return slice(*(_merged([getattr(value, end) for value in values], places, sizes) for end in ("start", "stop", "step")))
    if type(first) is int and any(value != first for value in values):
        return sizes.number(first, values[1:])
    if any(value != first for value in values):
        raise _UnlikeError
    return first


def serves(module: fx.GraphModule, model: Callable[[Arguments], Any], call: Call, example: Arguments, some: Sequence[Length]) -> bool:
    """Whether ``module`` gives what ``model`` gives on each of ``trials`` that the model takes; not where it takes none."""
    from engine.lowering.graph.call import largest, largest_difference

    taken = 0
    for sizes in trials(some):
        arguments = resized(call, example, some, sizes)
        try:
            expected = model(arguments)
        except Exception:
            continue
        taken += 1
        try:
            found = module(*(x.clone() for x in call.flatten(*arguments)))
            # NaN, of a row that is nothing but padding, would compare as unlike.
            if not largest_difference(found, expected) <= 1e-4 * max(1.0, largest(expected)):
                return False
        except Exception:
            return False
    return taken > 0


def copied(gm: fx.GraphModule) -> fx.GraphModule:
    """The same modules under a graph of its own."""
    graph = fx.Graph()
    values: dict[fx.Node, fx.Node] = {}
    for node in gm.graph.nodes:
        values[node] = graph.node_copy(node, values.__getitem__)
    with torch.no_grad():
        return fx.GraphModule(gm, graph, type(gm).__name__)
