"""How long one layer takes on its integer kernel and in fp32, alone, on this machine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.events.speed import is_slower
from engine.kernels.base import ACTIVATIONS, CONVOLUTIONS, IntegerLayer, Kernel
from engine.kernels.stopwatch import Run, Stopwatch
from engine.numerics.qparams import QParams

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    **ACTIVATIONS, "relu": F.relu_, "relu6": lambda y: F.relu6(y, inplace=True), "hardswish": lambda y: F.hardswish(y, inplace=True),
    "silu": lambda y: F.silu(y, inplace=True), "sigmoid": torch.sigmoid_, "tanh": torch.tanh_, "mish": lambda y: F.mish(y, inplace=True),
    "hardsigmoid": lambda y: F.hardsigmoid(y, inplace=True),
}  # fmt: skip


@dataclass(frozen=True)
class LayerShape:
    """A layer's work without its numbers: what runs inside its integer kernel, on one image.

    ``weight`` is (out, in/groups, ...), ``input`` (N, ...) in sizes. ``accumulate`` is a residual sum; without
    ``integer_output`` the result is float32. ``top`` is the largest integer that an activation takes.
    """

    kind: str
    weight: tuple[int, ...]
    input: tuple[int, ...]
    bias: bool
    activation: str = "none"
    accumulate: bool = False
    integer_output: bool = True
    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    groups: int = 1
    top: int = 255

    def layer(self) -> IntegerLayer:
        """The layer as a kernel is asked about it; its weights are not set."""
        # Where the grid lies does not change the time; where it ends may: some kernels bound their result in a step of its own.
        out, grid = self.weight[0], QParams(0.02, 3, self.top)
        return IntegerLayer(
            self.kind, torch.empty(self.weight, dtype=torch.int8), torch.full((out,), 0.001), torch.zeros(out) if self.bias else None,
            grid, grid if self.integer_output else None, self.activation, grid if self.accumulate else None, **self._geometry(),
        )  # fmt: skip

    def _geometry(self) -> dict[str, Any]:
        return {"stride": self.stride, "padding": self.padding, "dilation": self.dilation, "groups": self.groups}

    def fp32(self) -> Callable[..., Tensor]:
        """The same work in float32, its convolution channels last: a function of the input and, with ``accumulate``, the other
        operand."""
        weight = laid_out(torch.full(self.weight, 0.01))
        bias = torch.zeros(self.weight[0]) if self.bias else None
        activation = _ACTIVATIONS[self.activation]
        if self.kind == "linear":
            return lambda x: activation(F.linear(x, weight, bias))
        conv, shape = CONVOLUTIONS[len(self.weight) - 2], self._geometry()
        if self.accumulate:
            return lambda x, other: activation(conv(x, weight, bias, **shape).add_(other))
        return lambda x: activation(conv(x, weight, bias, **shape))


@dataclass(frozen=True)
class Timing:
    """Milliseconds of one call on ``batch`` images."""

    int8_ms: float
    fp32_ms: float
    batch: int = 1

    @property
    def slower(self) -> bool:
        return is_slower(self.int8_ms, self.fp32_ms)

    def __add__(self, other: Timing) -> Timing:
        return Timing(round(self.int8_ms + other.int8_ms, 4), round(self.fp32_ms + other.fp32_ms, 4), self.batch)


def laid_out(x: Tensor) -> Tensor:
    """Channels last where it has four dimensions, as values lie between layers."""
    return x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x


def time_layer(shape: LayerShape, kernels: Sequence[Kernel], watch: Stopwatch, batch: int = 1) -> Timing | None:
    """``shape`` on ``batch`` images: on the first of ``kernels`` that takes it, and in float32.

    None where only simulation takes it, whose speed says nothing, and where there is no time left. Raises Cancelled.
    """
    layer = shape.layer()
    kernel = next((kernel for kernel in kernels if kernel.refuses(layer) is None), None)
    if kernel is None or kernel.simulated:
        return None

    def runs() -> tuple[Run, Run]:
        # Which numbers are multiplied does not change the time.
        layer.weight.fill_(3)
        integers, floats = kernel.build(layer), shape.fp32()
        x = laid_out(torch.full((shape.input[0] * batch, *shape.input[1:]), 0.5))
        whole = laid_out(torch.full(x.shape, 3, dtype=torch.uint8))
        if not shape.accumulate:
            return tied(integers, whole), (lambda: floats(x))
        size = _output(shape, x).shape
        other, other_whole = laid_out(torch.zeros(size)), laid_out(torch.full(size, 3, dtype=torch.uint8))
        return tied(integers, whole, other_whole), (lambda: floats(x, other))

    with torch.inference_mode():
        found = watch.race(f"{kernel.name} {batch} {shape}", runs)
    return None if found is None else Timing(*found, batch)


def tied(function: Callable[..., Tensor], *inputs: Tensor) -> Run:
    """A layer's function on its tensors, tied to their memory where it can be, as a model's program runs it."""
    if not hasattr(function, "fix"):
        return lambda: function(*inputs)
    # A residual lies where the result is written.
    out = inputs[1] if len(inputs) > 1 else function(*inputs)
    run = function.fix(inputs[:1], out)
    return (lambda: function(*inputs)) if run is None else (lambda: run(inputs[0]))


def _output(shape: LayerShape, x: Tensor) -> Tensor:
    conv = CONVOLUTIONS[len(shape.weight) - 2]
    with torch.device("meta"):
        return conv(torch.empty(x.shape), torch.empty(shape.weight), None, shape.stride, shape.padding, shape.dilation, shape.groups)
