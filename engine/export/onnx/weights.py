"""Weights and biases of integer layers as initializers and the nodes that turn them into what a runtime's kernels take."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from engine.export.onnx.graph import Graph
from engine.numerics.qtensor import QTensor

_LARGEST = 2**30
# The part of an output's step that the rounding of a bias may move it by.
_MOVED = 0.25


def weights(graph: Graph, weight: QTensor, scale: Tensor, hint: str, shape: tuple[int, ...] | None = None) -> str:
    """Float weights in ``shape``, from int8 or int4 initializers through DequantizeLinear with one scale a channel.

    Integers of 4 bits are stored two to a byte and widened to int8, a group's multiplier with them: all of that reads constants
    alone, so that a runtime does it once, when it loads the file, and then has the int8 weights of its integer kernels.
    """
    name = _integers(graph, weight, hint)
    if shape is not None and shape != tuple(weight.codes.shape):
        name = graph.reshape(name, shape, hint)
    return dequantized(graph, name, scale, f"{hint}_weight")


def dequantized(graph: Graph, name: str, scale: Tensor, hint: str, dtype: type = np.int8) -> str:
    """Integers (channels, ...) times the ``scale`` of each channel."""
    zeros: Any = np.zeros(scale.shape, dtype)
    return graph.node("DequantizeLinear", [name, graph.constant(scale), graph.constant(zeros)], hint, axis=0)


def _integers(graph: Graph, weight: QTensor, hint: str) -> str:
    """The name of int8 weights in units of the channel's scale, in their own shape."""
    kind = graph.onnx.TensorProto
    if weight.bits > 4:
        return graph.constant(weight.integers(), f"{hint}_integers")
    if weight.multiplier is None:
        return graph.node("Cast", [graph.int4(weight.codes, f"{hint}_integers")], hint, to=kind.INT8)
    flat, (out, groups) = weight.codes.flatten(1), weight.multiplier.shape
    padded = torch.nn.functional.pad(flat, (0, groups * weight.group_size - flat.shape[1]))
    stored = graph.int4(padded.reshape(out, groups, weight.group_size), f"{hint}_integers")
    spread = graph.node("Cast", [graph.constant(weight.multiplier.reshape(out, groups, 1), f"{hint}_multiplier")], hint, to=kind.INT32)
    made = graph.node("Mul", [graph.node("Cast", [stored], hint, to=kind.INT32), spread], hint)
    made = graph.node("Cast", [made], hint, to=kind.INT8)
    made = graph.reshape(made, (out, groups * weight.group_size), hint)
    if padded.shape != flat.shape:
        made = graph.node("Slice", [made, *(graph.constant([n]) for n in (0, flat.shape[1], 1))], hint)
    return graph.reshape(made, tuple(weight.codes.shape), hint)


def usable_scale(weight: QTensor, bias: Tensor | None, step: float) -> Tensor:
    """The weights' scale, widened in channels of zeros whose bias would not fit in 32 bits otherwise."""
    if bias is None:
        return weight.channel_scale
    empty = weight.codes.flatten(1).eq(0).all(1)
    return torch.where(empty, torch.maximum(weight.channel_scale, bias.abs() / (step * _LARGEST)), weight.channel_scale)


def bias(graph: Graph, values: Tensor, scale: Tensor, step: float, out: float | None, hint: str) -> str | None:
    """A bias in the units of the products, as int32; None where it does not fit, or where those units are so coarse beside the output's
    step ``out`` that rounding it would move the output. It is then to be added in float32 behind the layer: ONNX Runtime rounds a
    layer's own to int32 too, and cuts off what is beyond."""
    unit = scale.double() * step
    rounded = (values.double() / unit).round()
    if not torch.isfinite(rounded).all() or rounded.abs().max() > _LARGEST:
        return None
    if out is not None and unit.max() / 2 > _MOVED * out and (rounded * unit - values.double()).abs().max() > _MOVED * out:
        return None
    name = graph.constant(rounded.to(torch.int32), f"{hint}_bias_integers")
    return dequantized(graph, name, unit.float(), f"{hint}_bias", np.int32)


def blocked(graph: Graph, weight: QTensor, hint: str) -> str:
    """Float weights (in, out) of a linear layer whose arithmetic stays in floating point, from integers of the stored
    width with one scale a channel or a block of inputs.

    A DequantizeLinear right before a MatMul is what ONNX Runtime replaces by a MatMulNBits, which by default rounds the layer's
    inputs to 8 bits. So 4 bits are turned behind it, and 8 bits, which the runtime turns by itself, are cast and scaled."""
    if weight.bits > 4:
        stored = graph.constant(weight.integers().t().contiguous(), f"{hint}_integers")
        numbers = graph.node("Cast", [stored], f"{hint}_weight", to=graph.onnx.TensorProto.FLOAT)
        return graph.node("Mul", [numbers, graph.constant(weight.channel_scale)], f"{hint}_weight")
    name = graph.int4(weight.codes.contiguous(), f"{hint}_integers")
    if weight.multiplier is None:
        made = graph.node("DequantizeLinear", [name, graph.constant(weight.channel_scale)], f"{hint}_weight", axis=0)
    else:
        step = (weight.multiplier.float() * weight.scale).contiguous()
        made = graph.node("DequantizeLinear", [name, graph.constant(step)], f"{hint}_weight", axis=1, block_size=weight.group_size)
    return graph.node("Transpose", [made], f"{hint}_weight", perm=[1, 0])
