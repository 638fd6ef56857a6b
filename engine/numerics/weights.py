"""Quantization parameters of a weight matrix, and rounding to nearest with them.

Symmetric codes stand for ``w = scale * q``, affine ones for ``w = scale * (q - zero)`` with an integer zero point in the range of
the codes. Scales are rounded to the dtype in which they are stored before the codes are chosen: what is stored is what was measured.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.errors import EngineError
from engine.numerics.qtensor import QTensor
from engine.numerics.scheme import WeightScheme, in_groups

# Below SMALLEST a float16 scale is subnormal with fewer than four significant bits; LARGEST is the largest float16.
SMALLEST, LARGEST = 2.0**-20, 65504.0
_SMALLEST_E4M3, _LARGEST_E4M3 = 2.0**-9, 448.0


@dataclass(frozen=True)
class WeightQParams:
    """The representable values of a matrix: ``scale`` floating point (out, groups), in the format's own dtype where packed tensors are
    made of it, ``zero`` uint8 (out, groups) or None where symmetric. With ``multiplier``, uint8 (out, groups), ``scale`` is (out, 1), and
    the step of a group their product (scales of two levels, as in ``QTensor``); ``tensor_scale``, float32 (), multiplies all of them."""

    scheme: WeightScheme
    scale: Tensor
    zero: Tensor | None
    multiplier: Tensor | None = None
    tensor_scale: Tensor | None = None

    @classmethod
    def of(cls, weight: QTensor) -> WeightQParams:
        return cls(weight.scheme, weight.scale, weight.zero, weight.multiplier, weight.tensor_scale)

    @classmethod
    def stored(cls, scheme: WeightScheme, step: Tensor, zero: Tensor | None = None) -> WeightQParams:
        """Steps (out, groups) as the format stores them: rounded, that is. Raises EngineError where they are not finite, or beyond what
        is stored."""
        form = scheme.format
        if form.scale == torch.float16:
            return cls(scheme, stored_scale(step), zero)
        _refuse_nonfinite(step)
        if form.scale == torch.float8_e8m0fnu:
            return cls(scheme, _power_of_two(step, form.high), zero)
        whole = (step.amax() / _LARGEST_E4M3).clamp_min(torch.finfo(torch.float32).tiny).to(torch.float32)
        return cls(scheme, (step / whole).clamp(_SMALLEST_E4M3, _LARGEST_E4M3).to(form.scale), zero, None, whole)

    def with_codes(self, codes: Tensor) -> QTensor:
        return QTensor(codes, self.scale, self.zero, self.scheme.format, self.scheme.group_size, self.multiplier, self.tensor_scale)

    @property
    def step(self) -> Tensor:
        """Of each group, float32 (out, groups)."""
        step = self.scale.to(torch.float32)
        if self.multiplier is not None:
            step = self.multiplier.to(torch.float32) * step
        return step if self.tensor_scale is None else step * self.tensor_scale

    def columns(self, inputs: int) -> tuple[Tensor, Tensor]:
        """Step and zero point of every weight, float32 (out, inputs) each."""
        size = self.scheme.size(inputs)
        step = self.step.repeat_interleave(size, 1)[:, :inputs]
        if self.zero is None:
            return step, torch.zeros_like(step)
        return step, self.zero.to(torch.float32).repeat_interleave(size, 1)[:, :inputs]


def qparams_between(low: Tensor, high: Tensor, scheme: WeightScheme) -> WeightQParams:
    """What covers ``low``..``high`` (out, groups), widened to hold zero. Raises EngineError where they are not finite."""
    low, high = low.clamp_max(0), high.clamp_min(0)
    if scheme.symmetric:
        return WeightQParams.stored(scheme, torch.maximum(high, -low) / scheme.high)
    scale = stored_scale((high - low) / scheme.high)
    zero = scheme.format.encode(scheme.format.round_(-low / scale.to(torch.float32)))
    return WeightQParams(scheme, scale, zero)


def stored_scale(scale: Tensor) -> Tensor:
    """Scales in float16, as they are stored. One that float16 holds badly, as that of an all-zero group, is raised to ``SMALLEST``.
    Raises EngineError where they are not finite, or beyond float16."""
    _refuse_nonfinite(scale)
    if scale.numel() and scale.max() > LARGEST:
        raise EngineError(f"a weight group needs a step of {scale.max():.3g}, beyond float16: use smaller groups or more bits")
    return scale.clamp_min(SMALLEST).to(torch.float16)


def _refuse_nonfinite(scale: Tensor) -> None:
    if not torch.isfinite(scale).all():
        raise EngineError("the weights hold NaN or infinity: they cannot be quantized; load other weights")


def _power_of_two(step: Tensor, high: float) -> Tensor:
    """E8M0 scales: 2^(floor(log2 m) - e) for the largest magnitude m = ``step * high`` of a block and the exponent e of the largest
    value ``high`` of an element, so that what is above it is rounded down (OCP Microscaling 1.0, section 6.3)."""
    largest = step.to(torch.float64) * high
    exponent = torch.where(largest > 0, largest, torch.ones_like(largest)).log2().floor() - math.floor(math.log2(high))
    exponent = torch.where(largest > 0, exponent, torch.full_like(exponent, -127)).clamp(-127, 127)
    return torch.exp2(exponent).to(torch.float32).to(torch.float8_e8m0fnu)


def minmax(weight: Tensor, scheme: WeightScheme, second: Tensor | None = None) -> WeightQParams:
    """What covers each group of ``weight`` (out, in) whole; the inputs' second moments are not looked at."""
    grouped = in_groups(weight.to(torch.float32), scheme)
    return qparams_between(grouped.amin(2), grouped.amax(2), scheme)


def quantize(weight: Tensor, qparams: WeightQParams) -> QTensor:
    """Each weight (out, in) to the nearest representable value."""
    step, zero = qparams.columns(weight.shape[1])
    form = qparams.scheme.format
    return qparams.with_codes(form.encode(form.round_(weight.to(torch.float32) / step, zero if form.affine else None)))
