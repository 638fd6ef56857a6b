"""The ONNX form of ``aten``'s pools, normalizations and convolutions."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from engine.export.onnx.aten import At

Build = Callable[[At], Any]


def _sizes(given: Any, count: int) -> list[int]:
    sizes = [given] if isinstance(given, int) else list(given)
    return sizes * count if len(sizes) == 1 else sizes


def _ends(padding: list[int], ceil: int, at: At, kernel: list[int], stride: list[int], dilation: list[int]) -> dict[str, Any]:
    """Padding at both ends; a last window that hangs over is padding too, so that no runtime's rule for it is needed."""
    extra = [0] * len(kernel)
    if ceil:
        sizes = at.args[0].shape[-len(kernel) :]
        out = at.shape[-len(kernel) :]
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
        made = at.node("AveragePool", at.args[0], **ends)
        if inner and any(padding):
            # OpenVINO pads its integers with zeros, which are not zero on most grids: the average is one of what is inside, and
            # then the zeros around it are counted in.
            made = at.node("Mul", made, at.graph.constant(_inside(at.args[0].shape[-count:], at.shape[-count:], kernel, stride, padding)))
        return made if divisor is None else at.node("Mul", made, math.prod(kernel) / divisor)

    return build


def _inside(sizes: Any, out: Any, kernel: list[int], stride: list[int], padding: list[int]) -> Any:
    """The part of each window that lies inside the image."""
    part = np.ones((1,) * len(kernel), np.float32)
    for axis, (size, count) in enumerate(zip(sizes, out, strict=True)):
        starts = np.arange(count) * stride[axis] - padding[axis]
        within = np.minimum(starts + kernel[axis], size) - np.maximum(starts, 0)
        part = part * (within / kernel[axis]).astype(np.float32).reshape([-1 if i == axis else 1 for i in range(len(kernel))])
    return part


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
            return (_own_statistics(at, x, weight, bias),)
        channels = mean.shape[0]
        scale = weight if weight is not None else at.graph.constant(np.ones(channels, np.float32))
        shift = bias if bias is not None else at.graph.constant(np.zeros(channels, np.float32))
        return (at.node("BatchNormalization", x, scale, shift, mean, variance, epsilon=at.args[-1]),)

    return build


def _own_statistics(at: At, x: Any, weight: Any, bias: Any) -> str:
    """What an instance normalization is to torch: that of one image with the channels of all."""
    if x.shape[0] != 1:
        raise ValueError("a normalization by the batch's own statistics")
    rank = len(x.shape)
    axes, channel = at.graph.constant(list(range(2, rank))), at.graph.constant([1, -1, *[1] * (rank - 2)])
    away = at.node("Sub", x, at.node("ReduceMean", x, axes, keepdims=1))
    variance = at.node("ReduceMean", at.node("Mul", away, away), axes, keepdims=1)
    made = at.node("Div", away, at.node("Sqrt", at.node("Add", variance, float(at.args[-1]))))
    made = made if weight is None else at.node("Mul", made, at.node("Reshape", weight, channel))
    return made if bias is None else at.node("Add", made, at.node("Reshape", bias, channel))


def _convolution(at: At) -> str:
    x, weight, bias, stride, padding, dilation, transposed, output_padding, groups = at.args
    inputs = [x, weight] if bias is None else [x, weight, bias]
    shared = {"strides": list(stride), "pads": [*padding, *padding], "dilations": list(dilation), "group": groups}
    if transposed:
        return at.node("ConvTranspose", *inputs, output_padding=list(output_padding), **shared)
    return at.node("Conv", *inputs, **shared)


LAYERS: dict[str, Build] = {
    "max_pool2d_with_indices": _max_pool(2), "max_pool3d_with_indices": _max_pool(3),
    "avg_pool1d": _avg_pool(1), "avg_pool2d": _avg_pool(2), "avg_pool3d": _avg_pool(3), "_adaptive_avg_pool2d": _adaptive,
    "native_layer_norm": _layer_norm, "native_group_norm": _group_norm,
    "native_batch_norm": _batch_norm(5), "_native_batch_norm_legit": _batch_norm(5),
    "_native_batch_norm_legit_no_training": _batch_norm(None), "convolution": _convolution,
}  # fmt: skip
