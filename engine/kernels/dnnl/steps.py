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
    MULTIPLY,
    SRC,
    SRC_1,
    Attributes,
    Handle,
    Primitive,
    channels_last,
    described,
    descriptor,
    memory,
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
    constants: tuple[tuple[int, Handle], ...] = ()


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
            constants = [*self._form.attributes.arguments(self._library), *self._form.constants]
            moving = [(SRC, source), (SRC_1, source)][: self._form.inputs]
            return Primitive(self._library, about, constants, [*moving, (DST, target)])
        except EngineError:
            return None


class QuantizeOnShapes(StepOnShapes):
    """float32 to uint8. ``as_it_lies`` leaves dense tensors of any number of dimensions in their layout."""

    def __init__(self, dnnl: Library, form: Form, as_it_lies: bool, instead: Function) -> None:
        super().__init__(dnnl, form, instead)
        self._flat = as_it_lies

    def __call__(self, *inputs: Tensor) -> Tensor:
        (x,) = inputs
        if not self._flat or not _dense(x):
            return super().__call__(x)
        primitive = self._at((_row(x),))
        if primitive is None:
            return self._instead(x)
        y = torch.empty_like(x, dtype=torch.uint8)
        primitive.bind(x, y).run()
        return y

    def fix(self, inputs: tuple[Tensor, ...], out: Tensor) -> Callable[[Tensor], None] | None:
        (x,) = inputs
        if not self._flat or not _dense(x) or x.stride() != out.stride():
            return super().fix(inputs, out)
        primitive = self._at((_row(x),))
        return None if primitive is None else primitive.bind(x, out).run

    def head(self, x: Tensor, out: Tensor) -> Callable[[Tensor], None] | None:
        return None if self._flat else super().head(x, out)

    def dense(self, x: Tensor) -> Tensor:
        return x if self._flat and _dense(x) else super().dense(x)


def _dense(x: Tensor) -> bool:
    return torch.ops.aten.is_non_overlapping_and_dense(x)  # type: ignore[no-any-return]


def _row(x: Tensor) -> Tensor:
    """The same memory as one row."""
    return x.as_strided((1, x.numel(), 1, 1), (x.numel(), 1, x.numel(), x.numel()))


def quantize(dnnl: Library, q: QParams, as_it_lies: bool, instead: Function) -> StepOnShapes | None:
    """float32 of any layout to uint8 on ``q``."""
    if q.qmax != 255:
        return _bounded(dnnl, q, as_it_lies, instead)
    extra = Attributes()
    extra.scale(DST, q.scale)
    if q.zero_point:
        extra.zero_points[DST] = q.zero_point
    held = extra.handle(dnnl)

    def describe(dnnl: Library, shape: tuple[int, ...], source: Handle, target: Handle) -> Handle:
        return described(dnnl, "reorder", source.address, dnnl.engine, target.address, dnnl.engine, held.address)

    return QuantizeOnShapes(dnnl, Form(lambda shape: shape, describe, extra), as_it_lies, instead)


def _bounded(dnnl: Library, q: QParams, as_it_lies: bool, instead: Function) -> StepOnShapes:
    """As a product with one number: a reorder would not stop at a bound under 255."""
    extra = Attributes()
    extra.then("linear", 1.0, float(q.zero_point))
    extra.then("clip", 0.0, float(q.qmax))
    held = extra.handle(dnnl)
    one = descriptor(dnnl, (1, 1, 1, 1), torch.float32, (1, 1, 1, 1))
    inverse = memory(dnnl, one, torch.tensor([1.0 / q.scale]))

    def describe(dnnl: Library, shape: tuple[int, ...], source: Handle, to: Handle) -> Handle:
        return described(dnnl, "binary", dnnl.engine, MULTIPLY, source.address, one.address, to.address, held.address)

    return QuantizeOnShapes(dnnl, Form(lambda shape: shape, describe, extra, constants=((SRC_1, inverse),)), as_it_lies, instead)


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
    """Sum of two tensors on their grids, with relu, on a third."""
    extra = Attributes()
    # In steps of the result, where its zero point is the one bound that relu needs.
    extra.scale(SRC, left.scale / target.scale)
    extra.scale(SRC_1, right.scale / target.scale)
    moved = -left.zero_point * left.scale / target.scale - right.zero_point * right.scale / target.scale
    extra.then("linear", 1.0, moved + target.zero_point)
    _bound(extra, target, relu)
    held = extra.handle(dnnl)

    def describe(dnnl: Library, shape: tuple[int, ...], source: Handle, to: Handle) -> Handle:
        return described(dnnl, "binary", dnnl.engine, _ADD, source.address, source.address, to.address, held.address)

    return StepOnShapes(dnnl, Form(lambda shape: shape, describe, extra, inputs=2), instead)


def mean(dnnl: Library, source: QParams, target: QParams, flat: bool, instead: Function) -> StepOnShapes | None:
    """Mean over height and width, (N, C, H, W) to (N, C, 1, 1) or ``flat`` (N, C), from one grid to another."""
    extra = Attributes()
    ratio = source.scale / target.scale
    extra.then("linear", ratio, target.zero_point - source.zero_point * ratio)
    _bound(extra, target)
    held = extra.handle(dnnl)
    none = dims((0, 0))

    def describe(dnnl: Library, shape: tuple[int, ...], given: Handle, to: Handle) -> Handle:
        sizes = (dims((1, 1)), dims(shape[2:]), none, none, none)
        return described(dnnl, "pooling_forward", dnnl.engine, INFERENCE, _AVERAGE, given.address, to.address, *sizes, held.address)

    return StepOnShapes(dnnl, Form(lambda shape: (*shape[:2], 1, 1), describe, extra, flat=flat), instead)


def _bound(extra: Attributes, target: QParams, relu: bool = False) -> None:
    """The grid's ends, in its own steps, where those of a byte are others; relu is its zero point."""
    if target.qmax < 255 or (relu and target.zero_point):
        extra.then("clip", float(target.zero_point) if relu else 0.0, float(target.qmax))


class _PerChannel:
    """``x`` (N, C, H, W) times a number plus a number for each channel, in steps of ``target``: one primitive for an image or, where
    the numbers are the same for all, for a batch."""

    def __init__(self, dnnl: Library, target: QParams, relu: bool) -> None:
        self._library, self._target, self._relu = dnnl, target, relu
        self._made: OrderedDict[Any, Primitive | None] = OrderedDict()

    def at(self, shape: tuple[int, ...]) -> Primitive | None:
        """For uint8 images of this shape, bound to them, float32 factors and shifts (C,), and the result; None where oneDNN has none."""
        key = (shape, self._library.match_threads())
        if key not in self._made:
            self._made[key] = self._make(shape)
            if len(self._made) > _KEPT:
                self._made.popitem(last=False)
        return self._made[key]

    def _make(self, shape: tuple[int, ...]) -> Primitive | None:
        dnnl, one_each = self._library, (1, shape[1], 1, 1)
        x = descriptor(dnnl, shape, torch.uint8, channels_last(shape))
        numbers = descriptor(dnnl, one_each, torch.float32, channels_last(one_each))
        extra = Attributes()
        added = extra.then_add(numbers)
        _bound(extra, self._target, self._relu)
        held = extra.handle(dnnl)
        try:
            about = described(dnnl, "binary", dnnl.engine, MULTIPLY, x.address, numbers.address, x.address, held.address)
            return Primitive(dnnl, about, [], [(SRC, x), (SRC_1, numbers), (added, numbers), (DST, x)])
        except EngineError:
            return None

    def empty(self, x: Tensor) -> Tensor:
        return torch.empty(x.shape, dtype=torch.uint8, memory_format=torch.channels_last)


class AffineOnShapes:
    """uint8 (N, C, H, W) on one grid to a factor times it and a shift for each channel, with relu, on another."""

    def __init__(
        self, dnnl: Library, factor: Tensor, shift: Tensor, source: QParams, target: QParams, relu: bool, instead: Function
    ) -> None:
        self._each, self._instead = _PerChannel(dnnl, target, relu), instead
        per_step = factor.double() * source.scale
        self._factors = (per_step / target.scale).float()
        self._shifts = ((shift.double() - per_step * source.zero_point) / target.scale + target.zero_point).float()

    def __call__(self, *inputs: Tensor) -> Tensor:
        x = self.dense(inputs[0])
        primitive = self._each.at(tuple(x.shape))
        if primitive is None:
            return self._instead(x)
        y = self._each.empty(x)
        primitive.bind(x, self._factors, self._shifts, y).run()
        return y

    def fix(self, inputs: tuple[Tensor, ...], out: Tensor) -> Callable[[Tensor], None] | None:
        primitive = self._each.at(tuple(inputs[0].shape))
        return None if primitive is None else primitive.bind(inputs[0], self._factors, self._shifts, out).run

    def dense(self, x: Tensor) -> Tensor:
        return x.contiguous(memory_format=torch.channels_last)


class GateOnShapes:
    """uint8 (N, C, H, W) times uint8 (N, C, 1, 1), each on its grid, on a third. The factors are made numbers first: oneDNN takes no
    zero points here, and one set of numbers a channel, so each image has a call of its own."""

    def __init__(self, dnnl: Library, values: QParams, gates: QParams, target: QParams, instead: Function) -> None:
        self._each, self._instead = _PerChannel(dnnl, target, False), instead
        self._factor = values.scale * gates.scale / target.scale
        self._gates_zero, self._zero, self._shift = gates.zero_point, float(values.zero_point), float(target.zero_point)

    def __call__(self, *inputs: Tensor) -> Tensor:
        x, gates = inputs
        x, y = self.dense(x), self._each.empty(x)
        run = self.fix((x, gates), y)
        if run is None:
            return self._instead(x, gates)
        run(x)
        return y

    def fix(self, inputs: tuple[Tensor, ...], out: Tensor) -> Callable[[Tensor], None] | None:
        x, gates = inputs
        primitive = self._each.at((1, *x.shape[1:]))
        if primitive is None or gates.numel() != x.shape[0] * x.shape[1]:
            return None
        factors, shifts = torch.empty(x.shape[:2]), torch.empty(x.shape[:2])
        flat = gates.view(x.shape[:2])
        runs = [primitive.bind(*each).run for each in zip(torch.split(x, 1), factors, shifts, torch.split(out, 1), strict=True)]
        moved, moving, scale, zero = -self._gates_zero * self._factor, self._zero != 0.0, self._factor, self._zero
        base = torch.full((), self._shift)
        shifts.fill_(self._shift)

        def run(_: Tensor) -> None:
            factors.copy_(flat).mul_(scale).add_(moved)
            if moving:
                torch.add(base, factors, alpha=-zero, out=shifts)
            for each in runs:
                each()

        return run

    def dense(self, x: Tensor) -> Tensor:
        return x.contiguous(memory_format=torch.channels_last)


class DnnlSteps:
    """The steps above on one library."""

    def __init__(self, dnnl: Library) -> None:
        self.quantize = partial(quantize, dnnl)
        self.max_pool = partial(max_pool, dnnl)
        self.add = partial(add, dnnl)
        self.mean = partial(mean, dnnl)
        self._library = dnnl

    def affine(
        self, factor: Tensor, shift: Tensor, source: QParams, target: QParams, relu: bool, instead: Function
    ) -> AffineOnShapes | None:
        return AffineOnShapes(self._library, factor, shift, source, target, relu, instead)

    def gate(self, values: QParams, gates: QParams, target: QParams, instead: Function) -> GateOnShapes | None:
        return GateOnShapes(self._library, values, gates, target, instead)
