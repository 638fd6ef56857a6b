"""The ONNX form of each ``aten`` operation: a function from a call (``At``) to the name of its result, or a tuple of names."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from engine.export.onnx.aten import At
from engine.export.onnx.aten_layers import LAYERS
from engine.export.onnx.aten_more import MORE, range_of
from engine.export.onnx.aten_numbers import NUMBERS, by_matrices, by_places
from engine.export.onnx.graph import Batch, Dim

Build = Callable[[At], Any]


def _plain(op: str, **attributes: Any) -> Build:
    return lambda at: at.node(op, at.args[0], **attributes)


def _same(at: At) -> str:
    return at.read(at.args[0])


# What arithmetic is on truth values.
_OF_TRUTH = {"Add": "Or", "Max": "Or", "Mul": "And", "Min": "And"}


def _binary(op: str) -> Build:
    def build(at: At) -> str:
        left, right = at.args[:2]
        if at.kind == torch.bool and op in _OF_TRUTH:
            return at.node(_OF_TRUTH[op], left, right)
        alpha = at.kwargs.get("alpha", 1)
        return at.node(op, left, right if alpha == 1 else at.node("Mul", right, alpha))

    return build


def _bmm(at: At) -> str:
    """A constant that is the same for the whole batch is read once: torch repeats the weights of a layer to multiply by them."""

    def once(given: Any) -> Any:
        constant = given.constant
        if constant is None or not torch.equal(constant, constant[:1].expand_as(constant)):
            return given
        return replace(given, shape=given.shape[1:], constant=constant[0])

    left, right = at.args[:2]
    return at.node("MatMul", left, once(right)) if left.constant is None else at.node("MatMul", once(left), right)


def _clip(low: float, high: float) -> Build:
    def build(at: At) -> str:
        least, most = at.arg(1, "min", low), at.arg(2, "max", high)
        named = ["" if end is None else at.read(end) for end in (least, most)]
        return at.node("Clip", at.args[0], *named)

    return build


def _gelu(at: At) -> str:
    return at.node("Gelu", at.args[0], approximate=at.arg(1, "approximate", "none"))


def _silu(at: At) -> str:
    return at.node("Mul", at.args[0], at.node("Sigmoid", at.args[0]))


def _reshape(at: At) -> str:
    return at.graph.reshape(at.read(at.args[0]), at.shape, at.hint)


def _permuted(at: At, order: list[int]) -> str:
    return at.node("Transpose", at.args[0], perm=order)


def _permute(at: At) -> str:
    return _permuted(at, [d % len(at.shape) for d in at.arg(1, "dims")])


def _transpose(at: At) -> str:
    order = list(range(len(at.shape)))
    a, b = (d % len(order) for d in at.args[1:3])
    order[a], order[b] = order[b], order[a]
    return _permuted(at, order)


def _t(at: At) -> str:
    return _permuted(at, list(range(len(at.shape)))[::-1])


def _expand(at: At) -> str:
    return at.node("Expand", at.args[0], at.graph.shape(at.shape, f"{at.hint}_shape"))


def _cat(at: At) -> str:
    # torch passes over an empty list of numbers, as caches begin, whatever the rank of the others.
    parts = [at.read(part) for part in at.args[0] if tuple(part.shape) != (0,) or len(at.shape) == 1]
    return at.graph.node("Concat", parts, at.hint, axis=at.arg(1, "dim", 0) % len(at.shape))


def _stack(at: At) -> str:
    axis = at.arg(1, "dim", 0) % len(at.shape)
    thin = tuple(1 if i == axis else size for i, size in enumerate(at.shape))
    return at.graph.node("Concat", [at.graph.reshape(at.read(part), thin, at.hint) for part in at.args[0]], at.hint, axis=axis)


def _cut(at: At, axis: int, start: int, end: int, step: int = 1) -> str:
    return at.node("Slice", at.args[0], *(at.graph.constant([part]) for part in (start, end, axis, step)))


def _slice(at: At) -> str:
    end = at.arg(3, "end")
    start, axis = at.arg(2, "start") or 0, at.arg(1, "dim", 0) % len(at.shape)
    if isinstance(at.shape[axis], Batch) and not isinstance(at.args[0].shape[axis], Batch) and start == 0:
        return at.node(
            "Slice", at.args[0], at.graph.constant([0]), at.graph.shape([at.shape[axis]], f"{at.hint}_end"), at.graph.constant([axis])
        )
    whole = start == 0 and (end is None or end >= 2**31)
    if isinstance(size := at.args[0].shape[axis], Batch) and not whole and (0 in size.of or at.args[1:] != at.larger[1:]):
        raise ValueError("a part of the batch")
    return _cut(at, axis, start, 2**62 if end is None else end, at.arg(4, "step", 1))


def _select(at: At) -> str:
    return at.node("Gather", at.args[0], at.graph.constant(np.array(at.args[2], np.int64)), axis=at.args[1] % (len(at.shape) + 1))


def _split(at: At) -> tuple[str, ...]:
    axis, start, found = at.arg(2, "dim", 0) % len(at.shape), 0, []
    for shape in at.shapes:
        if isinstance(shape[axis], Batch):
            raise ValueError("a part of the batch")
        found.append(_cut(at, axis, start, start + shape[axis]))
        start += shape[axis]
    return tuple(found)


def _unbind(at: At) -> tuple[str, ...]:
    axis = at.arg(1, "dim", 0) % (len(at.shape) + 1)
    return tuple(at.node("Gather", at.args[0], at.graph.constant(np.array(i, np.int64)), axis=axis) for i in range(len(at.shapes)))


def _softmax(op: str) -> Build:
    return lambda at: at.node(op, at.args[0], axis=at.arg(1, "dim"))


def _attention(at: At) -> tuple[str, ...]:
    q, k, v = at.args[:3]
    scale = at.kwargs.get("scale") or 1 / math.sqrt(q.shape[-1])
    order = [*range(len(k.shape) - 2), len(k.shape) - 1, len(k.shape) - 2]
    scores = at.node("MatMul", at.node("Mul", q, scale), at.node("Transpose", k, perm=order))
    mask = at.kwargs.get("attn_mask")
    if at.arg(4, "is_causal", False):
        scores = at.node("Where", _seen(at, q.shape[-2], k.shape[-2]), scores, -math.inf)
    elif mask is not None:
        scores = at.node("Add", scores, mask)
    return (at.node("MatMul", at.node("Softmax", scores, axis=-1), v),)


def _seen(at: At, length: Dim, known: Dim) -> str:
    """Of each of ``length`` places, those of ``known`` that are not after it; lengths that are open are counted in the file."""
    if not isinstance(length, Batch) and not isinstance(known, Batch):
        return at.graph.constant(torch.ones(length, known, dtype=torch.bool).tril())
    counts = (at.node("Squeeze", at.graph.shape((size,), f"{at.hint}_count")) for size in (length, known))
    rows, columns = (range_of(at, count) for count in counts)
    return at.node("LessOrEqual", columns, at.node("Unsqueeze", rows, at.graph.constant([1])))


def _pad(at: At) -> str:
    pads, rank = list(at.args[1]), len(at.shape)
    starts, ends = [0] * rank, [0] * rank
    for i in range(len(pads) // 2):
        starts[rank - 1 - i], ends[rank - 1 - i] = pads[2 * i], pads[2 * i + 1]
    return at.node("Pad", at.args[0], at.graph.constant([*starts, *ends]), float(at.arg(2, "value", 0.0) or 0.0))


def _roll(at: At) -> str:
    made, shape = at.read(at.args[0]), at.shape
    for shift, axis in zip(at.args[1], at.arg(2, "dims", []), strict=True):
        size = shape[axis]
        cut = (-shift) % size
        if len(shape) < 4:
            # OpenVINO crashes on slices of rows of integers.
            order = (np.arange(size, dtype=np.int64) + cut) % size
            made = at.node("Gather", made, at.graph.constant(order), axis=axis % len(shape))
            continue
        if cut:
            ends = [
                at.node("Slice", made, *(at.graph.constant([part]) for part in (start, end, axis % len(shape), 1)))
                for start, end in ((cut, size), (0, cut))
            ]
            made = at.graph.node("Concat", ends, at.hint, axis=axis % len(shape))
    return made


def _slice_scatter(at: At) -> str:
    axis = at.arg(2, "dim", 0) % len(at.shape)
    if isinstance(size := at.shape[axis], Batch):
        raise ValueError("an assignment to a part of the batch")
    start, end = at.arg(3, "start"), at.arg(4, "end")
    return _assigned(at, axis, size, slice(start, end, at.arg(5, "step", 1)), at.read(at.args[1]))


def _select_scatter(at: At) -> str:
    axis = at.arg(2, "dim") % len(at.shape)
    if isinstance(size := at.shape[axis], Batch):
        raise ValueError("an assignment to a part of the batch")
    index = at.arg(3, "index") % size
    thin = tuple(1 if i == axis else width for i, width in enumerate(at.shape))
    return _assigned(at, axis, size, slice(index, index + 1), at.graph.reshape(at.read(at.args[1]), thin, at.hint))


def _assigned(at: At, axis: int, size: int, places: slice, values: str) -> str:
    """The first argument with ``values`` at ``places`` of ``axis``: both behind one another, read in another order."""
    order = np.arange(size, dtype=np.int64)
    order[places] = size + np.arange(len(order[places]))
    both = at.node("Concat", at.args[0], values, axis=axis)
    return at.node("Gather", both, at.graph.constant(order), axis=axis)


def _resize(mode: str, **attributes: Any) -> Build:
    exactly = by_places(2) if mode == "nearest" else by_matrices(2)

    def build(at: At) -> str:
        # A scale that was given is not always that of the sizes, and the nearest value of another than whole scale is one that
        # rounding chooses.
        scales, pairs = at.args[2 if mode == "nearest" else 3 :], list(zip(at.args[0].shape[-2:], at.shape[-2:], strict=True))
        given = any(scale and scale * size != out for scale, (size, out) in zip(scales, pairs, strict=False))
        if given or (mode == "nearest" and any(out % size for size, out in pairs)):
            return str(exactly(at))
        # With scales the file serves images of other sizes too.
        whole = len(pairs) == len(scales) and all(scale and float(scale).is_integer() for scale in scales)
        by = [at.graph.constant(np.array([1, 1, *scales], np.float32))] if whole else ["", at.graph.shape(at.shape, f"{at.hint}_sizes")]
        kind = attributes.get("coordinate_transformation_mode")
        if mode != "nearest":
            kind = "align_corners" if at.args[2] else "half_pixel"
        return at.node("Resize", at.args[0], "", *by, mode=mode, **{**attributes, "coordinate_transformation_mode": kind})

    return build


def _where(at: At) -> str:
    return at.node("Where", *at.args[:3])


def _masked_fill(at: At) -> str:
    return at.node("Where", at.args[1], at.args[2], at.args[0])


def _embedding(at: At) -> str:
    return at.node("Gather", at.args[0], at.args[1], axis=0)


def _rsub(at: At) -> str:
    return at.node("Sub", at.args[1], at.args[0])


def _pixel_shuffle(at: At) -> str:
    return at.node("DepthToSpace", at.args[0], blocksize=at.args[1], mode="CRD")


def _first(build: Build) -> Build:
    return lambda at: (build(at),)


_LIKE = dict.fromkeys(("clone", "contiguous", "alias", "detach", "lift_fresh_copy", "lift_fresh", "dropout"), _same)
_RESHAPES = dict.fromkeys(("view", "_unsafe_view", "reshape", "squeeze", "unsqueeze", "_reshape_alias", "flatten", "unflatten"), _reshape)
_UNARY = {
    name: _plain(op)
    for name, op in (
        ("relu", "Relu"), ("sigmoid", "Sigmoid"), ("tanh", "Tanh"), ("exp", "Exp"), ("sqrt", "Sqrt"), ("abs", "Abs"), ("neg", "Neg"),
        ("log", "Log"), ("floor", "Floor"), ("ceil", "Ceil"), ("round", "Round"), ("erf", "Erf"), ("reciprocal", "Reciprocal"),
        ("sin", "Sin"), ("cos", "Cos"), ("hardswish", "HardSwish"), ("softplus", "Softplus"), ("mish", "Mish"), ("sign", "Sign"),
    )
}  # fmt: skip
_BINARY = {
    name: _binary(op)
    for name, op in (
        ("add", "Add"), ("sub", "Sub"), ("mul", "Mul"), ("pow", "Pow"), ("maximum", "Max"), ("minimum", "Min"),
        ("matmul", "MatMul"), ("mm", "MatMul"),
    )
}  # fmt: skip
OPS: dict[str, Build] = {
    **LAYERS, **MORE, **NUMBERS, **_LIKE, **_RESHAPES, **_UNARY, **_BINARY,
    "hardsigmoid": _plain("HardSigmoid", alpha=1 / 6, beta=0.5), "silu": _silu, "gelu": _gelu, "relu6": _clip(0.0, 6.0),
    "hardtanh": _clip(-1.0, 1.0), "clamp": _clip(-math.inf, math.inf), "clamp_min": lambda at: at.node("Clip", at.args[0], at.args[1]),
    "leaky_relu": lambda at: at.node("LeakyRelu", at.args[0], alpha=float(at.arg(1, "negative_slope", 0.01))),
    "elu": lambda at: at.node("Elu", at.args[0], alpha=float(at.arg(1, "alpha", 1.0))), "rsub": _rsub,
    "permute": _permute, "transpose": _transpose, "t": _t, "expand": _expand, "cat": _cat, "stack": _stack, "slice": _slice,
    "select": _select, "split": _split, "split_with_sizes": _split, "chunk": _split, "unbind": _unbind,
    "bmm": _bmm, "_softmax": _softmax("Softmax"), "_log_softmax": _softmax("LogSoftmax"),
    "_scaled_dot_product_flash_attention_for_cpu": _attention, "constant_pad_nd": _pad, "roll": _roll, "where": _where,
    "slice_scatter": _slice_scatter, "select_scatter": _select_scatter,
    "masked_fill": _masked_fill, "embedding": _embedding,
    "pixel_shuffle": _pixel_shuffle, "native_dropout": _first(_same),
    "upsample_nearest2d": _resize("nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor"),
    "upsample_bilinear2d": _resize("linear"), "upsample_bicubic2d": _resize("cubic", cubic_coeff_a=-0.75),
}  # fmt: skip
