"""Linear layers on int8 weights, float32 in and out: activations are quantized as they come, or to a grid that is given."""

from __future__ import annotations

from ctypes import c_float

import torch
from torch import Tensor

from engine.kernels.dnnl.blocks import BlockedRows
from engine.kernels.dnnl.library import Library, library
from engine.kernels.dnnl.packed import PackedWeights, Products
from engine.kernels.dnnl.primitive import SRC, WEIGHTS, Attributes
from engine.numerics.qparams import QParams, quantize

TINY = 1e-30


class DynamicLinear:
    """``x`` (..., in) in float32 to (..., out) in float32, as ``x @ (weight * scale).T + bias`` with each row of ``x`` rounded to
    2^(bits-1) - 1 steps of its largest magnitude (per-token symmetric quantization, as in Yao et al. 2022, arXiv:2206.01861).

    ``weight`` is int8 (out, in), ``scale`` float32 (out,), ``bits`` 2 to 8. Where sums of 8-bit products saturate
    (``Machine.activation_bits`` is 7) only 7 bits and fewer are exact. The weights are held once, in oneDNN's layout. Not for
    two threads at once. Raises EngineError without oneDNN.
    """

    def __init__(self, weight: Tensor, scale: Tensor, bias: Tensor | None, dnnl: Library | None = None, bits: int = 8) -> None:
        dnnl = dnnl or library()
        self.shape = (weight.shape[0], weight.shape[1])
        self._bias = None if bias is None else bias.float().contiguous()
        self._top = 2 ** (bits - 1) - 1
        # oneDNN adds 128 to signed activations, which leaves nothing to spare for a sum that saturates: fewer bits go unsigned.
        self._zero = 0 if bits == 8 else self._top
        self._dtype = torch.int8 if bits == 8 else torch.uint8
        several, single, step = _scaled(scale, self._zero), _scaled(scale, self._zero), torch.ones(1)
        single.scale(SRC, step)
        self._step = c_float.from_address(step.data_ptr())
        self.weights = PackedWeights(dnnl, weight, self._dtype, several)
        self._several = Products(dnnl, self.weights, several, None)
        self._single = Products(dnnl, self.weights, single, self._bias)

    def rows(self, weight: Tensor) -> BlockedRows | None:
        """A way to look up the rows of ``weight``, that of this layer, in its memory; None where the layout is not known."""
        return self.weights.rows(weight)

    def __call__(self, x: Tensor) -> Tensor:
        if x.numel() == self.shape[1]:
            return self._row(x)
        rows = x.reshape(-1, x.shape[-1])
        step = torch.amax(rows.abs(), 1, keepdim=True).clamp_min_(TINY).div_(self._top)
        integers = self._integers(torch.div(rows, step)).contiguous()
        y = torch.empty(len(rows), self.shape[0])
        self._several.of(len(rows)).on(integers, y)
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
        self._single.of(1).on(integers, y)
        return y

    def _integers(self, ratio: Tensor) -> Tensor:
        rounded = ratio.round_()
        return (rounded.add_(self._zero) if self._zero else rounded).to(self._dtype)


class GridLinear:
    """As ``DynamicLinear``, with all of ``x`` rounded to ``grid``: 8 bits where sums do not saturate, else 7."""

    def __init__(self, weight: Tensor, scale: Tensor, bias: Tensor | None, grid: QParams, dnnl: Library | None = None) -> None:
        dnnl = dnnl or library()
        attributes = _scaled(scale, grid.zero_point)
        attributes.scale(SRC, grid.scale)
        self.shape, self._grid = (weight.shape[0], weight.shape[1]), grid
        self.weights = PackedWeights(dnnl, weight, torch.uint8, attributes)
        self._products = Products(dnnl, self.weights, attributes, None if bias is None else bias.float().contiguous())

    def rows(self, weight: Tensor) -> BlockedRows | None:
        """As ``DynamicLinear.rows``."""
        return self.weights.rows(weight)

    def __call__(self, x: Tensor) -> Tensor:
        integers = quantize(x.reshape(-1, x.shape[-1]), self._grid).contiguous()
        y = torch.empty(*x.shape[:-1], self.shape[0])
        self._products.of(len(integers)).on(integers, y)
        return y


def _scaled(scale: Tensor, zero: int) -> Attributes:
    found = Attributes(zero_points={SRC: zero} if zero else {})
    found.scale(WEIGHTS, scale.float().contiguous(), 2)
    return found
