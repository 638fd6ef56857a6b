"""The ONNX form of each ``aten`` operation: a function from a call (``At``) to the name of its result, or a tuple of names."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from engine.export.aten import At
from engine.export.graph import Batch

Build = Callable[[At], Any]


def _plain(op: str, **attributes: Any) -> Build:
    return lambda at: at.node(op, at.args[0], **attributes)


def _same(at: At) -> str:
    return at.read(at.args[0])


def _binary(op: str) -> Build:
    def build(at: At) -> str:
        left, right = at.args[0], at.args[1]
        alpha = at.kwargs.get("alpha", 1)
        return at.node(op, left, right if alpha == 1 else at.node("Mul", right, alpha))

    return build


def _div(at: At) -> str:
    made = at.node("Div", at.args[0], at.args[1])
    mode = at.kwargs.get("rounding_mode")
    return made if mode is None else at.node("Floor", made)


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


def _as_strided(at: At) -> str:
    """torch's way to name another order in memory."""
    if at.args[0].shape != at.shape:
        raise ValueError("a view by strides")
    return at.read(at.args[0])


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
    parts = [at.read(part) for part in at.args[0]]
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
    if isinstance(at.args[0].shape[axis], Batch) and not (start == 0 and (end is None or end >= 2**31)):
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


def _reduce(op: str) -> Build:
    def build(at: At) -> str:
        axes, keep = at.arg(1, "dim"), int(bool(at.arg(2, "keepdim", False)))
        rank = len(at.args[0].shape)
        axes = [axes] if isinstance(axes, int) else list(axes or range(rank))
        if op == "ReduceMean" and keep and rank == 4 and {axis % rank for axis in axes} == {2, 3}:
            # Runtimes have an integer kernel for this one.
            return at.node("GlobalAveragePool", at.args[0])
        return at.node(op, at.args[0], at.graph.constant(axes), keepdims=keep)

    return build


def _sizes(given: Any, count: int) -> list[int]:
    sizes = [given] if isinstance(given, int) else list(given)
    return sizes * count if len(sizes) == 1 else sizes


def _ends(padding: list[int], ceil: int, at: At, kernel: list[int], stride: list[int], dilation: list[int]) -> dict[str, Any]:
    """Padding at both ends; a last window that hangs over is padding too, so that no runtime's rule for it is needed."""
    extra = [0] * len(kernel)
    if ceil:
        sizes = at.args[0].shape[-len(kernel):]
        out = at.shape[-len(kernel):]
        for i, (size, count) in enumerate(zip(sizes, out, strict=True)):
            extra[i] = max((count - 1) * stride[i] + dilation[i] * (kernel[i] - 1) + 1 - 2 * padding[i] - size, 0)
    return {"kernel_shape": kernel, "strides": stride, "pads": [*padding, *(p + e for p, e in zip(padding, extra, strict=True))]}


def _max_pool(count: int) -> Build:
    def build(at: At) -> tuple[str, ...]:
        kernel = _sizes(at.args[1], count)
        stride = _sizes(at.arg(2, "stride") or kernel, count)
        padding, dilation = _sizes(at.arg(3, "padding", 0), count), _sizes(at.arg(4, "dilation", 1), count)
        ends = _ends(padding, at.arg(5, "ceil_mode", False), at, kernel, stride, dilation)
        return (at.node("MaxPool", at.args[0], dilations=dilation, **ends),)

    return build


def _avg_pool(count: int) -> Build:
    def build(at: At) -> str:
        kernel = _sizes(at.args[1], count)
        stride, padding = _sizes(at.arg(2, "stride") or kernel, count), _sizes(at.arg(3, "padding", 0), count)
        ceil, inner, divisor = at.arg(4, "ceil_mode", False), at.arg(5, "count_include_pad", True), at.arg(6, "divisor_override")
        ends = _ends(padding, ceil, at, kernel, stride, [1] * count)
        if ends["pads"][count:] != padding and inner and any(padding):
            raise ValueError("an average over windows that hang over the padding")
        made = at.node("AveragePool", at.args[0], count_include_pad=int(inner and any(padding)), **ends)
        return made if divisor is None else at.node("Mul", made, math.prod(kernel) / divisor)

    return build


def _adaptive(at: At) -> str:
    """As products with two matrices of averages: windows may have any size. One window is a mean."""
    sizes, out = at.args[0].shape[-2:], at.shape[-2:]
    if out == (1, 1):
        return at.node("ReduceMean", at.args[0], at.graph.constant([-2, -1]), keepdims=1)
    if all(size % count == 0 for size, count in zip(sizes, out, strict=True)):
        kernel = [size // count for size, count in zip(sizes, out, strict=True)]
        return at.node("AveragePool", at.args[0], kernel_shape=kernel, strides=kernel)
    rows, columns = (_averages(size, count) for size, count in zip(sizes, out, strict=True))
    return at.node("MatMul", at.node("MatMul", at.graph.constant(rows), at.args[0]), at.graph.constant(columns.T.copy()))


def _averages(size: int, count: int) -> Any:
    matrix = np.zeros((count, size), np.float32)
    for i in range(count):
        start, end = i * size // count, -(-(i + 1) * size // count)
        matrix[i, start:end] = 1 / (end - start)
    return matrix


def _softmax(op: str) -> Build:
    return lambda at: at.node(op, at.args[0], axis=at.arg(1, "dim"))


def _layer_norm(at: At) -> tuple[str, ...]:
    x, shape, weight, bias, epsilon = at.args
    one = weight if weight is not None else at.graph.constant(np.ones(shape, np.float32))
    more = [] if bias is None else [bias]
    return (at.node("LayerNormalization", x, one, *more, axis=-len(shape), epsilon=epsilon),)


def _group_norm(at: At) -> tuple[str, ...]:
    x, weight, bias, _, channels, _, groups, epsilon = at.args
    scale = weight if weight is not None else at.graph.constant(np.ones(channels, np.float32))
    shift = bias if bias is not None else at.graph.constant(np.zeros(channels, np.float32))
    return (at.node("GroupNormalization", x, scale, shift, num_groups=groups, epsilon=epsilon),)


def _batch_norm(training: int | None) -> Build:
    """``training`` is the place of the flag that must be off."""

    def build(at: At) -> tuple[str, ...]:
        x, weight, bias, mean, variance = at.args[:5]
        if training is not None and at.args[training]:
            raise ValueError("a normalization by the batch's own statistics")
        channels = mean.shape[0]
        scale = weight if weight is not None else at.graph.constant(np.ones(channels, np.float32))
        shift = bias if bias is not None else at.graph.constant(np.zeros(channels, np.float32))
        return (at.node("BatchNormalization", x, scale, shift, mean, variance, epsilon=at.args[-1]),)

    return build


def _convolution(at: At) -> str:
    x, weight, bias, stride, padding, dilation, transposed, output_padding, groups = at.args
    inputs = [x, weight] if bias is None else [x, weight, bias]
    shared = {"strides": list(stride), "pads": [*padding, *padding], "dilations": list(dilation), "group": groups}
    if transposed:
        return at.node("ConvTranspose", *inputs, output_padding=list(output_padding), **shared)
    return at.node("Conv", *inputs, **shared)


def _addmm(at: At) -> str:
    bias, a, b = at.args[:3]
    if at.kwargs.get("beta", 1) != 1 or at.kwargs.get("alpha", 1) != 1:
        raise ValueError("a scaled product")
    return at.node("Gemm", a, b, bias)


def _attention(at: At) -> tuple[str, ...]:
    q, k, v = at.args[:3]
    if at.arg(4, "is_causal", False):
        raise ValueError("causal attention")
    scale = at.kwargs.get("scale") or 1 / math.sqrt(q.shape[-1])
    order = [*range(len(k.shape) - 2), len(k.shape) - 1, len(k.shape) - 2]
    scores = at.node("MatMul", at.node("Mul", q, scale), at.node("Transpose", k, perm=order))
    mask = at.kwargs.get("attn_mask")
    scores = scores if mask is None else at.node("Add", scores, mask)
    return (at.node("MatMul", at.node("Softmax", scores, axis=-1), v),)


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
        if cut:
            ends = [
                at.node("Slice", made, *(at.graph.constant([part]) for part in (start, end, axis % len(shape), 1)))
                for start, end in ((cut, size), (0, cut))
            ]
            made = at.graph.node("Concat", ends, at.hint, axis=axis % len(shape))
    return made


def _resize(mode: str, **attributes: Any) -> Build:
    def build(at: At) -> str:
        sizes = at.graph.shape(at.shape, f"{at.hint}_sizes")
        kind = attributes.get("coordinate_transformation_mode")
        if mode == "linear":
            kind = "align_corners" if at.args[2] else "half_pixel"
        return at.node("Resize", at.args[0], "", "", sizes, mode=mode, **{**attributes, "coordinate_transformation_mode": kind})

    return build


def _where(at: At) -> str:
    return at.node("Where", *at.args[:3])


def _masked_fill(at: At) -> str:
    return at.node("Where", at.args[1], at.args[2], at.args[0])


def _full(value: float | None) -> Build:
    def build(at: At) -> str:
        number = at.args[1] if value is None else value
        return at.node("Expand", float(number), at.graph.shape(at.shape, f"{at.hint}_shape"))

    return build


def _embedding(at: At) -> str:
    return at.node("Gather", at.args[0], at.args[1], axis=0)


def _rsub(at: At) -> str:
    return at.node("Sub", at.args[1], at.args[0])


def _pixel_shuffle(at: At) -> str:
    return at.node("DepthToSpace", at.args[0], blocksize=at.args[1], mode="CRD")


def _first(build: Build) -> Build:
    return lambda at: (build(at),)


_LIKE = {name: _same for name in ("clone", "contiguous", "alias", "detach", "lift_fresh_copy", "lift_fresh", "_to_copy", "dropout")}
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
        ("matmul", "MatMul"), ("mm", "MatMul"), ("bmm", "MatMul"),
    )
}  # fmt: skip
OPS: dict[str, Build] = {
    **_LIKE, **_RESHAPES, **_UNARY, **_BINARY,
    "hardsigmoid": _plain("HardSigmoid", alpha=1 / 6, beta=0.5), "silu": _silu, "gelu": _gelu, "relu6": _clip(0.0, 6.0),
    "hardtanh": _clip(-1.0, 1.0), "clamp": _clip(-math.inf, math.inf), "clamp_min": lambda at: at.node("Clip", at.args[0], at.args[1]),
    "leaky_relu": lambda at: at.node("LeakyRelu", at.args[0], alpha=float(at.arg(1, "negative_slope", 0.01))),
    "elu": lambda at: at.node("Elu", at.args[0], alpha=float(at.arg(1, "alpha", 1.0))), "div": _div, "rsub": _rsub,
    "as_strided": _as_strided, "permute": _permute, "transpose": _transpose, "t": _t, "expand": _expand, "cat": _cat, "stack": _stack, "slice": _slice,
    "select": _select, "split": _split, "split_with_sizes": _split, "chunk": _split, "unbind": _unbind,
    "mean": _reduce("ReduceMean"), "sum": _reduce("ReduceSum"), "amax": _reduce("ReduceMax"), "amin": _reduce("ReduceMin"),
    "max_pool2d_with_indices": _max_pool(2), "max_pool3d_with_indices": _max_pool(3),
    "avg_pool1d": _avg_pool(1), "avg_pool2d": _avg_pool(2), "avg_pool3d": _avg_pool(3), "_adaptive_avg_pool2d": _adaptive,
    "_softmax": _softmax("Softmax"), "_log_softmax": _softmax("LogSoftmax"), "native_layer_norm": _layer_norm,
    "native_group_norm": _group_norm, "native_batch_norm": _batch_norm(5), "_native_batch_norm_legit": _batch_norm(5),
    "_native_batch_norm_legit_no_training": _batch_norm(None), "convolution": _convolution, "addmm": _addmm,
    "_scaled_dot_product_flash_attention_for_cpu": _attention, "constant_pad_nd": _pad, "roll": _roll, "where": _where,
    "masked_fill": _masked_fill, "zeros": _full(0.0), "ones": _full(1.0), "full": _full(None), "embedding": _embedding,
    "pixel_shuffle": _pixel_shuffle, "native_dropout": _first(_same),
    "upsample_nearest2d": _resize("nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor"),
    "upsample_bilinear2d": _resize("linear"),
}  # fmt: skip
