"""What lies between the layers: quantizing, pooling, sums and means of integers, each one primitive.

A step here is a function of tensors that can also be fixed to given memory; where oneDNN has no implementation, ``make``
gives None and the caller computes with torch.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from engine.errors import EngineError
from engine.kernels.dnnl.library import Library, dims
from engine.kernels.dnnl.primitive import (
    DST,
    INFERENCE,
    SRC,
    SRC_1,
    Attributes,
    Handle,
    Primitive,
    channels_last,
    described,
    descriptor,
)  # fmt: skip
from engine.numerics.qparams import QParams

_MAX, _AVERAGE = 0x1FF, 0x3FF
_ADD = 0x1FFF0
_KEPT = 4
Function = Callable[..., Tensor]


@dataclass(frozen=True)
class Form:
    """How a step is made: ``out`` gives the result's shape for the inputs' shapes, ``describe`` the primitive. ``flat`` drops the
    last two axes of the result, which are 1."""

    out: Callable[[tuple[int, ...]], tuple[int, ...]]
    describe: Callable[[Library, tuple[int, ...], Handle, Handle], Handle]
    attributes: Attributes
    inputs: int = 1
    flat: bool = False


class StepOnShapes:
    """A step as a function of uint8 (or float32, to be quantized) tensors (N, C, H, W); the result is uint8, channels last.

    Inputs of any layout are made dense channels last before oneDNN reads them: its reorder from float32 to uint8 leaves zero
    points out of some elements when it has to move them too (version 3, contiguous NCHW with more than 16 channels that are no
    multiple of four, transposed and expanded tensors). ``instead`` computes what oneDNN cannot.
    """

    def __init__(self, dnnl: Library, form: Form, instead: Function) -> None:
        self._library, self._form, self._instead = dnnl, form, instead
        self._made: OrderedDict[Any, Primitive | None] = OrderedDict()

    def __call__(self, *inputs: Tensor) -> Tensor:
        inputs = tuple(self.dense(x) for x in inputs)
        primitive = self._at(inputs)
        if primitive is None:
            return self._instead(*inputs)
        y = torch.empty(self._form.out(tuple(inputs[0].shape)), dtype=torch.uint8, memory_format=torch.channels_last)
        primitive.bind(*inputs, y).run()
        return y.flatten(1) if self._form.flat else y

    def fix(self, inputs: tuple[Tensor, ...], out: Tensor) -> Callable[[Tensor], None] | None:
        """The step on this memory, or None where oneDNN has no such primitive."""
        primitive = self._at(inputs)
        return None if primitive is None else primitive.bind(*inputs, out).run

    def head(self, x: Tensor, out: Tensor) -> Callable[[Tensor], None] | None:
        """As ``fix``, of another tensor like ``x``, in its layout, at each call."""
        primitive = self._at((x,))
        if primitive is None:
            return None
        held = self.dense(x)
        if held is x:
            bound = primitive.bind(torch.empty(0), out)
            return lambda given: bound.on(given, out)
        fixed = primitive.bind(held, out)

        def run(given: Tensor) -> None:
            held.copy_(given)
            fixed.run()

        return run

    def dense(self, x: Tensor) -> Tensor:
        return x.contiguous(memory_format=torch.channels_last if x.dim() == 4 else torch.contiguous_format)

    def _at(self, inputs: tuple[Tensor, ...]) -> Primitive | None:
        key = (inputs[0].shape, self._library.match_threads())
        if key not in self._made:
            if inputs[0].dim() != 4 or any(x.shape != inputs[0].shape for x in inputs):
                return None
            self._made[key] = self._make(inputs[0])
            if len(self._made) > _KEPT:
                self._made.popitem(last=False)
        return self._made[key]

    def _make(self, x: Tensor) -> Primitive | None:
        shape = tuple(x.shape)
        out = self._form.out(shape)
        source = descriptor(self._library, shape, x.dtype, channels_last(shape))
        target = descriptor(self._library, out, torch.uint8, channels_last(out))
        try:
            about = self._form.describe(self._library, shape, source, target)
            constants = self._form.attributes.arguments(self._library)
            moving = [(SRC, source), (SRC_1, source)][: self._form.inputs]
            return Primitive(self._library, about, constants, [*moving, (DST, target)])
        except EngineError:
            return None


def quantize(dnnl: Library, q: QParams, instead: Function) -> StepOnShapes | None:
    """float32 of any layout to uint8 on ``q``; None for grids that end below 255, where oneDNN would not stop."""
    if q.qmax != 255:
        return None
    extra = Attributes()
    extra.scale(DST, q.scale)
    if q.zero_point:
        extra.zero_points[DST] = q.zero_point
    held = extra.handle(dnnl)

    def describe(dnnl: Library, shape: tuple[int, ...], source: Handle, target: Handle) -> Handle:
        return described(dnnl, "reorder", source.address, dnnl.engine, target.address, dnnl.engine, held.address)

    return StepOnShapes(dnnl, Form(lambda shape: shape, describe, extra), instead)


def max_pool(
    dnnl: Library, kernel: tuple[int, ...], stride: tuple[int, ...], padding: tuple[int, ...], dilation: tuple[int, ...], instead: Function
) -> StepOnShapes:
    """Max pooling without ``ceil_mode``."""

    def out(shape: tuple[int, ...]) -> tuple[int, ...]:
        each = zip(shape[2:], kernel, stride, padding, dilation, strict=True)
        return (*shape[:2], *((size + 2 * p - d * (k - 1) - 1) // s + 1 for size, k, s, p, d in each))

    def describe(dnnl: Library, shape: tuple[int, ...], source: Handle, target: Handle) -> Handle:
        sizes = (dims(stride), dims(kernel), dims([d - 1 for d in dilation]), dims(padding), dims(padding))
        return described(dnnl, "pooling_forward", dnnl.engine, INFERENCE, _MAX, source.address, target.address, *sizes, None)

    return StepOnShapes(dnnl, Form(out, describe, Attributes()), instead)


def add(dnnl: Library, left: QParams, right: QParams, target: QParams, relu: bool, instead: Function) -> StepOnShapes | None:
    """Sum of two tensors on their grids, with relu, on a third; None for grids that end below 255."""
    if target.qmax != 255:
        return None
    extra = Attributes()
    # In steps of the result, where its zero point is the one bound that relu needs.
    extra.scale(SRC, left.scale / target.scale)
    extra.scale(SRC_1, right.scale / target.scale)
    moved = -left.zero_point * left.scale / target.scale - right.zero_point * right.scale / target.scale
    extra.then("linear", 1.0, moved + target.zero_point)
    if relu and target.zero_point:
        extra.then("clip", float(target.zero_point), 255.0)
    held = extra.handle(dnnl)

    def describe(dnnl: Library, shape: tuple[int, ...], source: Handle, to: Handle) -> Handle:
        return described(dnnl, "binary", dnnl.engine, _ADD, source.address, source.address, to.address, held.address)

    return StepOnShapes(dnnl, Form(lambda shape: shape, describe, extra, inputs=2), instead)


def mean(dnnl: Library, source: QParams, target: QParams, flat: bool, instead: Function) -> StepOnShapes | None:
    """Mean over height and width, (N, C, H, W) to (N, C, 1, 1) or ``flat`` (N, C), from one grid to another."""
    if target.qmax != 255:
        return None
    extra = Attributes()
    ratio = source.scale / target.scale
    extra.then("linear", ratio, target.zero_point - source.zero_point * ratio)
    held = extra.handle(dnnl)
    none = dims((0, 0))

    def describe(dnnl: Library, shape: tuple[int, ...], given: Handle, to: Handle) -> Handle:
        sizes = (dims((1, 1)), dims(shape[2:]), none, none, none)
        return described(dnnl, "pooling_forward", dnnl.engine, INFERENCE, _AVERAGE, given.address, to.address, *sizes, held.address)

    return StepOnShapes(dnnl, Form(lambda shape: (*shape[:2], 1, 1), describe, extra, flat=flat), instead)


class DnnlSteps:
    """The steps above on one library."""

    def __init__(self, dnnl: Library) -> None:
        self.quantize = partial(quantize, dnnl)
        self.max_pool = partial(max_pool, dnnl)
        self.add = partial(add, dnnl)
        self.mean = partial(mean, dnnl)
