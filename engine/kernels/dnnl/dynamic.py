"""Linear layers whose activations are quantized as they come: one scale a row (a token), int8 weights, float32 out."""

from __future__ import annotations

from collections import OrderedDict
from ctypes import c_float

import torch
from torch import Tensor

from engine.kernels.dnnl.library import Library, library
from engine.kernels.dnnl.primitive import (
    BIAS,
    DST,
    SRC,
    WEIGHTS,
    Attributes,
    Bound,
    Handle,
    Primitive,
    addresses,
    described,
    descriptor,
    memory,
    reordered,
    wanted,
)  # fmt: skip

_SHAPES = 4
# The weights lie as oneDNN wants them for a prompt of so many rows.
_PROMPT = 64
TINY = 1e-30


class DynamicLinear:
    """``x`` (..., in) in float32 to (..., out) in float32, as ``x @ (weight * scale).T + bias`` with each row of ``x`` rounded to
    2^(bits-1) - 1 steps of its largest magnitude (per-token symmetric quantization, as in Yao et al. 2022, arXiv:2206.01861).

    ``weight`` is int8 (out, in), ``scale`` float32 (out,), ``bits`` 2 to 8. Where sums of 8-bit products saturate
    (``Machine.activation_bits`` is 7) only 7 bits and fewer are exact. The weights are held once, in oneDNN's layout. Not for
    two threads at once. Raises EngineError without oneDNN.
    """

    def __init__(self, weight: Tensor, scale: Tensor, bias: Tensor | None, dnnl: Library | None = None, bits: int = 8) -> None:
        self._library = dnnl or library()
        self.shape = (weight.shape[0], weight.shape[1])
        self._bias = None if bias is None else bias.float().contiguous()
        self._top = 2 ** (bits - 1) - 1
        # oneDNN adds 128 to signed activations, which leaves nothing to spare for a sum that saturates: fewer bits go unsigned.
        self._zero = 0 if bits == 8 else self._top
        self._dtype = torch.int8 if bits == 8 else torch.uint8
        self._attributes = self._scaled(scale)
        self._single = self._scaled(scale)
        step = torch.ones(1)
        self._single.scale(SRC, step)
        self._step = c_float.from_address(step.data_ptr())
        self._made: OrderedDict[tuple[int, int], Bound] = OrderedDict()
        self._layout, self._packed = self._pack(weight)
        self._one: tuple[int, Bound] | None = None

    def __call__(self, x: Tensor) -> Tensor:
        if x.numel() == self.shape[1]:
            return self._row(x)
        rows = x.reshape(-1, x.shape[-1])
        step = torch.amax(rows.abs(), 1, keepdim=True).clamp_min_(TINY).div_(self._top)
        integers = self._integers(torch.div(rows, step)).contiguous()
        y = torch.empty(len(rows), self.shape[0])
        self._at(len(rows)).on(integers, y)
        y = y.mul_(step) if self._bias is None else torch.addcmul(self._bias, y, step)
        return y.view(*x.shape[:-1], -1)

    def _row(self, x: Tensor) -> Tensor:
        """One row: the step is a number that oneDNN multiplies with, and it adds the bias."""
        top = float(x.abs().max())
        # Not max(): what is not a number has to stay so.
        step = (TINY if top < TINY else top) / self._top
        self._step.value = step
        integers = self._integers(torch.div(x, step))
        y = torch.empty(*x.shape[:-1], self.shape[0])
        threads = self._library.match_threads()
        if self._one is None or self._one[0] != threads:
            self._one = threads, self._make(1, self._single, self._bias)
        self._one[1].on(integers, y)
        return y

    def _integers(self, ratio: Tensor) -> Tensor:
        rounded = ratio.round_()
        return (rounded.add_(self._zero) if self._zero else rounded).to(self._dtype)

    def _scaled(self, scale: Tensor) -> Attributes:
        found = Attributes(zero_points={SRC: self._zero} if self._zero else {})
        found.scale(WEIGHTS, scale.float().contiguous(), 2)
        return found

    def _at(self, rows: int) -> Bound:
        key = (rows, self._library.match_threads())
        bound = self._made.get(key)
        if bound is None:
            bound = self._made[key] = self._make(rows, self._attributes, None)
            if len(self._made) > _SHAPES:
                self._made.popitem(last=False)
        return bound

    def _pack(self, weight: Tensor) -> tuple[Handle, Handle]:
        """The layout that oneDNN chooses for a prompt, and the weights in it; a single row takes them as they lie."""
        self._library.match_threads()
        free = descriptor(self._library, (self.shape[1], self.shape[0]), torch.int8)
        layout = wanted(self._library, self._described(_PROMPT, self._attributes, None, free), WEIGHTS)
        return layout, reordered(self._library, weight.t(), layout)

    def _described(self, rows: int, attributes: Attributes, bias: Tensor | None, weights: Handle) -> Handle:
        dnnl, (out, given) = self._library, self.shape
        source = descriptor(dnnl, (rows, given), self._dtype, (given, 1))
        target = descriptor(dnnl, (rows, out), torch.float32, (out, 1))
        added = None if bias is None else descriptor(dnnl, (1, out), torch.float32, (out, 1))
        extra = attributes.handle(dnnl)
        return described(dnnl, "matmul", dnnl.engine, *addresses((source, weights, added, target)), extra.address)

    def _make(self, rows: int, attributes: Attributes, bias: Tensor | None) -> Bound:
        dnnl, (out, given) = self._library, self.shape
        about = self._described(rows, attributes, bias, self._layout)
        constants = [(WEIGHTS, self._packed), *attributes.arguments(dnnl)]
        if bias is not None:
            constants.append((BIAS, memory(dnnl, descriptor(dnnl, (1, out), torch.float32, (out, 1)), bias)))
        source, target = descriptor(dnnl, (rows, given), self._dtype, (given, 1)), descriptor(dnnl, (rows, out), torch.float32, (out, 1))
        return Primitive(dnnl, about, constants, [(SRC, source), (DST, target)]).bind(torch.empty(0), torch.empty(0))
