"""Quantization parameters of a weight matrix, and rounding to nearest with them.

Symmetric codes stand for ``w = scale * q``, affine ones for ``w = scale * (q - zero)`` with an integer zero point in the range of
the codes. Scales are rounded to the dtype in which they are stored before the codes are chosen: what is stored is what was measured.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from engine.errors import EngineError
from engine.numerics.qtensor import QTensor
from engine.numerics.scheme import WeightScheme, in_groups

# Below SMALLEST a float16 scale is subnormal with fewer than four significant bits; LARGEST is the largest float16.
SMALLEST, LARGEST = 2.0**-20, 65504.0


@dataclass(frozen=True)
class WeightQParams:
    """The representable values of a matrix: ``scale`` floating point (out, groups), float16 where packed tensors are made of it,
    ``zero`` uint8 (out, groups) or None where symmetric. With ``multiplier``, uint8 (out, groups), ``scale`` is (out, 1), and the
    step of a group their product (scales of two levels, as in ``QTensor``)."""

    scheme: WeightScheme
    scale: Tensor
    zero: Tensor | None
    multiplier: Tensor | None = None

    @classmethod
    def of(cls, weight: QTensor) -> WeightQParams:
        return cls(weight.scheme, weight.scale, weight.zero, weight.multiplier)

    def with_codes(self, codes: Tensor) -> QTensor:
        return QTensor(codes, self.scale, self.zero, self.scheme.format, self.scheme.group_size, self.multiplier)

    def columns(self, inputs: int) -> tuple[Tensor, Tensor]:
        """Step and zero point of every weight, float32 (out, inputs) each."""
        size = self.scheme.size(inputs)
        step = self.scale.to(torch.float32)
        if self.multiplier is not None:
            step = self.multiplier.to(torch.float32) * step
        step = step.repeat_interleave(size, 1)[:, :inputs]
        if self.zero is None:
            return step, torch.zeros_like(step)
        return step, self.zero.to(torch.float32).repeat_interleave(size, 1)[:, :inputs]


def qparams_between(low: Tensor, high: Tensor, scheme: WeightScheme) -> WeightQParams:
    """What covers ``low``..``high`` (out, groups), widened to hold zero. Raises EngineError where they are not finite."""
    low, high = low.clamp_max(0), high.clamp_min(0)
    if scheme.symmetric:
        return WeightQParams(scheme, stored_scale(torch.maximum(high, -low) / scheme.high), None)
    scale = stored_scale((high - low) / scheme.high)
    zero = scheme.format.encode(scheme.format.round_(-low / scale.to(torch.float32)))
    return WeightQParams(scheme, scale, zero)


def stored_scale(scale: Tensor) -> Tensor:
    """Scales in float16, as they are stored. One that float16 holds badly, as that of an all-zero group, is raised to ``SMALLEST``.
    Raises EngineError where they are not finite, or beyond float16."""
    if not torch.isfinite(scale).all():
        raise EngineError("the weights hold NaN or infinity: they cannot be quantized; load other weights")
    if scale.numel() and scale.max() > LARGEST:
        raise EngineError(f"a weight group needs a step of {scale.max():.3g}, beyond float16: use smaller groups or more bits")
    return scale.clamp_min(SMALLEST).to(torch.float16)


def minmax(weight: Tensor, scheme: WeightScheme, second: Tensor | None = None) -> WeightQParams:
    """What covers each group of ``weight`` (out, in) whole; the inputs' second moments are not looked at."""
    grouped = in_groups(weight.to(torch.float32), scheme)
    return qparams_between(grouped.amin(2), grouped.amax(2), scheme)


def quantize(weight: Tensor, qparams: WeightQParams) -> QTensor:
    """Each weight (out, in) to the nearest representable value."""
    step, zero = qparams.columns(weight.shape[1])
    form = qparams.scheme.format
    return qparams.with_codes(form.encode(form.round_(weight.to(torch.float32) / step, zero if form.affine else None)))
