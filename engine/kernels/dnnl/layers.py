"""Convolutions and linear layers on oneDNN's own primitives."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.kernels.base import ACTIVATIONS, IntegerLayer, LayerFunction, Steps
from engine.kernels.dnnl.library import Library, dims, library
from engine.kernels.dnnl.primitive import (
    BIAS,
    DIRECT,
    DST,
    INFERENCE,
    SRC,
    WEIGHTS,
    Attributes,
    Bound,
    Handle,
    Primitive,
    addresses,
    channels_last,
    described,
    descriptor,
    memory,
    reordered,
    wanted,
)  # fmt: skip
from engine.kernels.dnnl.steps import DnnlSteps

# oneDNN's alpha and beta.
_FACTORS = {"silu": (1.0, 0.0), "hardswish": (1 / 6, 0.5), "hardsigmoid": (1 / 6, 0.5)}
_FLOAT_MAX = 3.0e38
_SHAPES = 4


class Direct:
    """uint8 activations and int8 weights in oneDNN's layouts, with everything after the sum done before it is stored."""

    name = "dnnl"
    simulated = False

    def label(self, layer: IntegerLayer) -> str:
        return "dnnl.matmul" if layer.kind == "linear" else "dnnl.convolution+sum" if layer.accumulate else "dnnl.convolution"

    def refuses(self, layer: IntegerLayer) -> str | None:
        if layer.activation not in ACTIVATIONS:
            return f"no fused {layer.activation}"
        if layer.kind == "conv" and layer.dims != 2:
            return f"no {layer.dims}-D convolution"
        if layer.accumulate and (layer.kind != "conv" or layer.output is None):
            return "no fused sum of this form"
        return None

    def build(self, layer: IntegerLayer) -> LayerFunction:
        return LayerOnShapes(layer, library())

    def steps(self) -> Steps:
        return DnnlSteps(library())


def attributes(layer: IntegerLayer) -> Attributes:
    """Scales, and what follows the sum: the residual, the activation, the grid's upper bound."""
    found = Attributes()
    found.scale(SRC, layer.input.scale)
    found.scale(WEIGHTS, layer.weight_scale, 2 if layer.kind == "linear" else 3 if layer.groups > 1 else 1)
    if layer.accumulate is not None:
        found.then("sum", layer.accumulate.scale)
    top = _FLOAT_MAX
    if layer.output is not None:
        found.scale(DST, layer.output.scale)
        if layer.output.zero_point:
            found.zero_points[DST] = layer.output.zero_point
        if layer.output.qmax < 255:
            # The kernel saturates at 255, whatever the grid.
            top = (layer.output.qmax - layer.output.zero_point) * layer.output.scale
    low = -_FLOAT_MAX
    if layer.activation in ("relu", "relu6"):
        low, top = 0.0, min(top, 6.0) if layer.activation == "relu6" else top
    elif layer.activation != "none":
        alpha, beta = _FACTORS.get(layer.activation, (0.0, 0.0))
        found.then(layer.activation, alpha, beta)
    if low == 0.0 and top == _FLOAT_MAX:
        found.then("relu")
    elif top < _FLOAT_MAX:
        found.then("clip", low, top)
    return found


def offset(layer: IntegerLayer, padded: bool) -> Tensor | None:
    """The bias, less what the zero points add: that of the residual, and where nothing is padded that of the input."""
    bias = torch.zeros(len(layer.weight)).double() if layer.bias is None else layer.bias.double()
    if layer.input.zero_point and not padded:
        sums = layer.weight.flatten(1).sum(1, dtype=torch.int64).double()
        bias = bias - layer.input.zero_point * layer.input.scale * layer.weight_scale.double() * sums
    if layer.accumulate is not None:
        bias = bias - layer.accumulate.zero_point * layer.accumulate.scale
    return bias.float() if layer.bias is not None or bool(bias.any()) else None


@dataclass(frozen=True)
class _Made:
    primitive: Primitive
    bound: Bound
    out: tuple[int, ...]


class LayerOnShapes:
    """A layer as a function of tensors; the primitive for a shape is made when the shape is first met."""

    def __init__(self, layer: IntegerLayer, dnnl: Library) -> None:
        self._layer, self._library = layer, dnnl
        self._padded = any(layer.padding)
        self._attributes = attributes(layer)
        if self._padded and layer.input.zero_point:
            self._attributes.zero_points[SRC] = layer.input.zero_point
        self._bias = offset(layer, self._padded)
        if self._bias is not None and layer.kind == "linear":
            self._bias = self._bias[None]
        self._dtype = torch.float32 if layer.output is None else torch.uint8
        self._packed: list[tuple[Handle, Handle]] = []
        self._made: OrderedDict[tuple[int, ...], _Made] = OrderedDict()

    def __call__(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        x = self.dense(x)
        made = self._at(x)
        y = self._empty(made.out) if other is None else other.contiguous(memory_format=torch.channels_last)
        made.bound.on(x, y)
        return self._shaped(y, x)

    def fix(self, inputs: tuple[Tensor, ...], out: Tensor) -> Callable[[Tensor], None]:
        """The layer on these tensors: all later calls read and write the same memory. With a residual, ``out`` holds it."""
        (x,) = inputs[:1]
        flat = out.view(-1, out.shape[-1]) if self._layer.kind == "linear" else out
        return self._at(x).primitive.bind(x, flat).run

    def dense(self, x: Tensor) -> Tensor:
        return x.contiguous(memory_format=torch.channels_last if self._layer.kind == "conv" else torch.contiguous_format)

    def _empty(self, shape: tuple[int, ...]) -> Tensor:
        layout = torch.channels_last if len(shape) == 4 else torch.contiguous_format
        return torch.empty(shape, dtype=self._dtype, memory_format=layout)

    def _shaped(self, y: Tensor, x: Tensor) -> Tensor:
        return y.view(*x.shape[:-1], -1) if self._layer.kind == "linear" and x.dim() != 2 else y

    def _at(self, x: Tensor) -> _Made:
        key = (*x.shape, self._library.match_threads())
        made = self._made.get(key)
        if made is None:
            made = self._made[key] = self._make(tuple(x.shape))
            if len(self._made) > _SHAPES:
                self._made.popitem(last=False)
        return made

    def _make(self, shape: tuple[int, ...]) -> _Made:
        dnnl, layer = self._library, self._layer
        weight = layer.weight.contiguous()
        if layer.kind == "linear":
            shape = (torch.Size(shape[:-1]).numel(), shape[-1])
            out: tuple[int, ...] = (shape[0], len(weight))
            source, target = (descriptor(dnnl, s, t, (s[1], 1)) for s, t in ((shape, torch.uint8), (out, self._dtype)))
            weight = weight.t()
        else:
            out = (shape[0], len(weight), *_sizes(layer, shape))
            source, target = (descriptor(dnnl, s, t, channels_last(s)) for s, t in ((shape, torch.uint8), (out, self._dtype)))
            if layer.groups > 1:
                weight = weight.view(layer.groups, -1, *weight.shape[1:])
        free = descriptor(dnnl, weight.shape, torch.int8)
        bias = None if self._bias is None else descriptor(dnnl, self._bias.shape, torch.float32, self._bias.stride())
        extra = self._attributes.handle(dnnl)
        four = addresses((source, free, bias, target))
        if layer.kind == "linear":
            about = described(dnnl, "matmul", dnnl.engine, *four, extra.address)
        else:
            pads = [dims(layer.padding)] * 2
            steps = (dims(layer.stride), dims([d - 1 for d in layer.dilation]), *pads)
            about = described(dnnl, "convolution_forward", dnnl.engine, INFERENCE, DIRECT, *four, *steps, extra.address)
        constants = [(WEIGHTS, self._weights(weight, wanted(dnnl, about, WEIGHTS))), *self._attributes.arguments(dnnl)]
        if bias is not None:
            constants.append((BIAS, memory(dnnl, bias, self._bias)))
        primitive = Primitive(dnnl, about, constants, [(SRC, source), (DST, target)])
        return _Made(primitive, primitive.bind(torch.empty(0), torch.empty(0)), out)

    def _weights(self, weight: Tensor, target: Handle) -> Handle:
        """Reordered once for each layout that a shape asks for; most ask for the same."""
        for layout, held in self._packed:
            if self._library.equal(layout.address, target.address):
                return held
        held = reordered(self._library, weight, target)
        self._packed.append((target, held))
        return held


def _sizes(layer: IntegerLayer, shape: tuple[int, ...]) -> tuple[int, ...]:
    each = zip(shape[2:], layer.weight.shape[2:], layer.stride, layer.padding, layer.dilation, strict=True)
    return tuple((size + 2 * p - d * (k - 1) - 1) // s + 1 for size, k, s, p, d in each)
