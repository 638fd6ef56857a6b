"""The ONNX form of ``aten``'s comparisons, statistics, and of what picks and repeats."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from engine.export.onnx.aten import At
from engine.export.onnx.graph import Batch, Dim, Value

Build = Callable[[At], Any]
_END = 2**62


def _compare(op: str, negated: bool = False) -> Build:
    def build(at: At) -> str:
        made = at.node(op, *at.args[:2])
        return at.node("Not", made) if negated else made

    return build


def _truncated(at: At, number: str) -> str:
    return at.node("Mul", at.node("Sign", number), at.node("Floor", at.node("Abs", number)))


def _axes(at: At, given: Any) -> list[int]:
    rank = len(at.args[0].shape)
    axes = [given] if isinstance(given, int) else list(given or range(rank))
    return [axis % rank for axis in axes]


def _reduce(op: str, place: int = 1) -> Build:
    """``place`` is that of the axes among the arguments; whether they are kept follows."""

    def build(at: At) -> str:
        axes, keep = _axes(at, at.arg(place, "dim")), int(bool(at.arg(place + 1, "keepdim", False)))
        if op in ("ReduceMax", "ReduceMin"):
            return _extreme(at, op, at.args[0], axes, keep, at.shape)
        if op == "ReduceMean" and keep and len(at.args[0].shape) == 4 and set(axes) == {2, 3}:
            # Runtimes have an integer kernel for this one.
            return at.node("GlobalAveragePool", at.args[0])
        sizes = [size for axis, size in enumerate(at.args[0].shape) if axis in axes]
        if op == "ReduceMean" and len(at.args[0].shape) == 3 and all(isinstance(size, int) and size for size in sizes):
            # OpenVINO's mean of tokens that are integers is wrong from some number of images on; its sum is right.
            total = at.node("ReduceSum", at.args[0], at.graph.constant(axes), keepdims=keep)
            return at.node("Mul", total, 1 / math.prod(sizes))
        return at.node(op, at.args[0], at.graph.constant(axes), keepdims=keep)

    return build


def _extreme(at: At, op: str, x: Any, axes: list[int], keep: int, shape: Sequence[Dim]) -> str:
    """Reduced the other way and brought to ``shape`` by a step of its own: OpenVINO rounds inside a reduction that a
    QuantizeLinear follows, and for an extreme it does so wrongly."""
    return at.graph.reshape(at.node(op, x, at.graph.constant(axes), keepdims=1 - keep), shape, at.hint)


def _norm(at: At) -> str:
    order = float(at.arg(1, "ord", 2))
    if order == math.inf:
        return at.node("ReduceMax", at.node("Abs", at.args[0]), at.graph.constant(_axes(at, at.arg(2, "dim"))), keepdims=_kept(at))
    if order not in (1.0, 2.0):
        raise ValueError(f"a norm of order {order}")
    return str(_reduce(f"ReduceL{order:.0f}", 2)(at))


def _kept(at: At) -> int:
    return int(bool(at.arg(3, "keepdim", False)))


def _var(at: At) -> str:
    axes = _axes(at, at.arg(1, "dim"))
    sizes = [at.args[0].shape[axis] for axis in axes]
    if any(isinstance(size, Batch) for size in sizes):
        raise ValueError("a variance over the images")
    correction = at.kwargs.get("correction")
    freedom = math.prod(sizes) - (1 if correction is None else correction)
    away = at.node("Sub", at.args[0], at.node("ReduceMean", at.args[0], at.graph.constant(axes), keepdims=1))
    total = at.node("ReduceSumSquare", away, at.graph.constant(axes), keepdims=int(bool(at.kwargs.get("keepdim", False))))
    return at.node("Div", total, float(freedom))


def _max(at: At) -> Any:
    """Of two tensors, or along an axis with the places of the maxima."""
    if len(at.args) > 1 and isinstance(at.args[1], Value):
        return at.node("Max", at.args[0], at.args[1])
    made = _reduce("ReduceMax")(at)
    if len(at.shapes) < 2:
        return made
    axis, keep = at.args[1] % len(at.args[0].shape), int(bool(at.arg(2, "keepdim", False)))
    return made, at.node("ArgMax", at.args[0], axis=axis, keepdims=keep)


def _arange(at: At) -> str:
    """As many numbers as an open size says, from a start in steps that do not depend on it."""
    start, step = _from(at.args)
    if not isinstance(start, int) or not isinstance(step, int) or (start, step) != _from(at.larger):
        raise ValueError("a range over the images that does not count them")
    count = at.node("Squeeze", at.graph.shape(at.shape, f"{at.hint}_count"))
    made = range_of(at, count)
    if step != 1:
        made = at.node("Mul", made, at.graph.constant(np.array(step, np.int64)))
    if start:
        made = at.node("Add", made, at.graph.constant(np.array(start, np.int64)))
    return at.read(at.cast(Value(made, at.shape, None, torch.int64), at.result))


def _from(args: Sequence[Any]) -> tuple[Any, Any]:
    """Start and step of a range."""
    return (args[0] if len(args) > 1 else 0), (args[2] if len(args) > 2 else 1)


def range_of(at: At, count: str) -> str:
    """Whole numbers from 0, as many as the scalar ``count`` says."""
    zero, one = (at.graph.constant(np.array(number, np.int64)) for number in (0, 1))
    return at.node("Range", zero, count, one)


def _flip(at: At) -> str:
    axes = _axes(at, at.args[1])
    ends = ([-1] * len(axes), [-_END] * len(axes), axes, [-1] * len(axes))
    return at.node("Slice", at.args[0], *(at.graph.constant(part) for part in ends))


def _repeat(at: At) -> str:
    """Each dimension gets one of size 1 before it, which is expanded."""
    own = (1,) * (len(at.shape) - len(at.args[0].shape)) + tuple(at.args[0].shape)
    thin: list[Dim] = []
    wide: list[Dim] = []
    for size, out in zip(own, at.shape, strict=True):
        thin += [1, size]
        wide += [_times(out, size), size]
    name = at.graph.reshape(at.read(at.args[0]), thin, at.hint)
    name = at.node("Expand", name, at.graph.shape(wide, f"{at.hint}_shape"))
    return at.graph.reshape(name, at.shape, at.hint)


def _times(out: Dim, size: Dim) -> Dim:
    """How often ``size`` fits in ``out``."""
    if isinstance(out, Batch):
        return out.times // size.times if isinstance(size, Batch) else replace(out, times=out.times // size)
    assert isinstance(size, int)
    return out // size


def _index(at: At) -> str:
    """Gather for each index in turn: they may be tensors that vary along dimensions of their own, in order, as of a window."""
    x, indices = at.args[:2]
    given = [(axis, index) for axis, index in enumerate(indices) if index is not None]
    if any(isinstance(size, Batch) for _, index in given for size in index.shape):
        return _index_of_items(at, given)
    shape = np.broadcast_shapes(*(tuple(index.shape) for _, index in given))
    rank = len(shape)
    varying = [[d for d in range(rank) if index.constant is not None and _size(index, d, rank) == shape[d] > 1] for _, index in given]
    flat = [d for dims in varying for d in dims]
    places = [axis for axis, _ in given]
    if any(index.constant is None or index.constant.dtype == torch.bool for _, index in given):
        raise ValueError("an index that depends on the images")
    if flat != sorted(set(flat)) or places != list(range(places[0], places[0] + len(places))):
        raise ValueError("indices that vary together")
    name, shift = at.read(x), 0
    for (axis, index), dims in zip(given, varying, strict=True):
        own = index.constant.squeeze() if dims else index.constant.reshape(())
        name = at.node("Gather", name, at.graph.constant(own.to(torch.int64)), axis=axis + shift)
        shift += own.dim() - 1
    return at.graph.reshape(name, at.shape, at.hint)


def _index_of_items(at: At, given: Sequence[tuple[int, Value]]) -> str:
    """Indices of the first dimensions that vary with the items, as the places of the items themselves do: one place a row."""
    if [axis for axis, _ in given] != list(range(len(given))) or any(index.kind == torch.bool for _, index in given):
        raise ValueError("an index that depends on the images")
    rank = max(len(index.shape) for _, index in given)
    shape = at.graph.shape(at.shape[:rank], f"{at.hint}_places")
    last = at.graph.constant([-1])
    columns = [at.node("Unsqueeze", at.node("Expand", at.cast(index, torch.int64), shape), last) for _, index in given]
    return at.node("GatherND", at.args[0], at.graph.node("Concat", columns, at.hint, axis=-1))


def _size(index: Value, place: int, rank: int) -> int:
    """The index's size along one of the broadcast dimensions."""
    assert index.constant is not None
    own = place - (rank - index.constant.dim())
    return index.constant.shape[own] if own >= 0 else 1


def _index_select(at: At) -> str:
    return at.node("Gather", at.args[0], at.args[2], axis=at.args[1] % len(at.shape))


def _pad_with(mode: str) -> Build:
    def build(at: At) -> str:
        pads, rank = list(at.args[1]), len(at.shape)
        starts, ends = [0] * rank, [0] * rank
        for i in range(len(pads) // 2):
            starts[rank - 1 - i], ends[rank - 1 - i] = pads[2 * i], pads[2 * i + 1]
        return at.node("Pad", at.args[0], at.graph.constant([*starts, *ends]), mode=mode)

    return build


def _adaptive_max(at: At) -> tuple[str, ...]:
    """The maximum of each window's rows, then of its columns: windows may have any size."""
    name, rank, shape = at.read(at.args[0]), len(at.shape), list(at.args[0].shape)
    for axis in (rank - 2, rank - 1):
        size, count = shape[axis], at.shape[axis]
        shape[axis], parts = 1, []
        for i in range(count):
            ends = (i * size // count, -(-(i + 1) * size // count), axis, 1)
            window = at.node("Slice", name, *(at.graph.constant([part]) for part in ends))
            parts.append(_extreme(at, "ReduceMax", window, [axis], 1, shape))
        name, shape[axis] = at.graph.node("Concat", parts, at.hint, axis=axis), count
    return (name,)


MORE: dict[str, Build] = {
    "gt": _compare("Greater"), "ge": _compare("GreaterOrEqual"), "lt": _compare("Less"), "le": _compare("LessOrEqual"),
    "eq": _compare("Equal"), "ne": _compare("Equal", negated=True),
    "bitwise_not": lambda at: at.node("Not", at.args[0]), "logical_not": lambda at: at.node("Not", at.args[0]),
    "bitwise_and": _compare("And"), "logical_and": _compare("And"), "bitwise_or": _compare("Or"), "logical_or": _compare("Or"),
    "trunc": lambda at: _truncated(at, at.read(at.args[0])),
    "rsqrt": lambda at: at.node("Reciprocal", at.node("Sqrt", at.args[0])),
    "log1p": lambda at: at.node("Log", at.node("Add", at.args[0], 1.0)),
    "expm1": lambda at: at.node("Sub", at.node("Exp", at.args[0]), 1.0),
    "mean": _reduce("ReduceMean"), "sum": _reduce("ReduceSum"), "amax": _reduce("ReduceMax"), "amin": _reduce("ReduceMin"),
    "prod": _reduce("ReduceProd"), "logsumexp": _reduce("ReduceLogSumExp"), "linalg_vector_norm": _norm, "var": _var, "max": _max,
    "cumsum": lambda at: at.node("CumSum", at.args[0], at.graph.constant(np.array(at.args[1] % len(at.shape), np.int64))),
    "gather": lambda at: at.node("GatherElements", at.args[0], at.args[2], axis=at.args[1] % len(at.shape)),
    "arange": _arange, "flip": _flip, "repeat": _repeat, "index": _index, "index_select": _index_select,
    "reflection_pad1d": _pad_with("reflect"), "reflection_pad2d": _pad_with("reflect"),
    "replication_pad1d": _pad_with("edge"), "replication_pad2d": _pad_with("edge"), "adaptive_max_pool2d": _adaptive_max,
}  # fmt: skip
