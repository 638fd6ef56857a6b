"""Quantization parameters of a weight matrix, and rounding to nearest with them.

Symmetric codes stand for ``w = scale * q``, affine ones for ``w = scale * (q - zero)`` with an integer zero point in the range of
the codes. Scales are rounded to the dtype in which they are stored before the codes are chosen: what is stored is what was measured.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from engine.errors import EngineError
from engine.numerics.qtensor import QTensor, of_groups
from engine.numerics.scheme import WeightScheme, in_groups

# Below SMALLEST a float16 scale is subnormal with fewer than four significant bits; LARGEST is the largest float16.
SMALLEST, LARGEST = 2.0**-20, 65504.0
# What a step of zero is taken for where it divides: its codes are at an end, and stand for the group's offset.
_NO_STEP = 1e-30
_SMALLEST_E4M3, _LARGEST_E4M3 = 2.0**-9, 448.0


@dataclass(frozen=True)
class WeightQParams:
    """The representable values of a matrix: ``scale`` floating point (out, groups), in the format's own dtype where packed tensors are
    made of it, ``zero`` uint8 (out, groups) or None where symmetric. With ``multiplier``, uint8 (out, groups), ``scale`` is (out, 1), and
    the step of a group their product (scales of two levels, as in ``QTensor``); ``tensor_scale``, float32 (), multiplies all of them.
    ``offset`` and ``offset_multiplier`` are those of GGUF's formats, as in ``QTensor``."""

    scheme: WeightScheme
    scale: Tensor
    zero: Tensor | None
    multiplier: Tensor | None = None
    tensor_scale: Tensor | None = None
    offset: Tensor | None = None
    offset_multiplier: Tensor | None = None

    @classmethod
    def of(cls, weight: QTensor) -> WeightQParams:
        scales = (weight.scale, weight.zero, weight.multiplier, weight.tensor_scale, weight.offset, weight.offset_multiplier)
        return cls(weight.scheme, *scales)

    @classmethod
    def stored(cls, scheme: WeightScheme, step: Tensor, zero: Tensor | None = None) -> WeightQParams:
        """Steps (out, groups) as the format stores them: rounded, that is. ``zero`` (out, groups) are zero points, real numbers where
        the format is shifted. Raises EngineError where they are not finite, or beyond what is stored."""
        form, step = scheme.format, scheme.shared(step)
        if form.layout is not None:
            return in_blocks(scheme, step, step * zero if form.shifted and zero is not None else None)
        if form.scale == torch.float16:
            return cls(scheme, stored_scale(step), zero)
        _refuse_nonfinite(step)
        if form.scale == torch.float8_e8m0fnu:
            return cls(scheme, power_of_two(step, form.high), zero)
        whole = (step.amax() / _LARGEST_E4M3).clamp_min(torch.finfo(torch.float32).tiny).to(torch.float32)
        return cls(scheme, (step / whole).clamp(_SMALLEST_E4M3, _LARGEST_E4M3).to(form.scale), zero, None, whole)

    def with_codes(self, codes: Tensor) -> QTensor:
        return QTensor(
            codes, self.scale, self.zero, self.scheme.format, self.scheme.group_size, self.multiplier, self.tensor_scale,
            self.offset, self.offset_multiplier, self.scheme.rows,
        )  # fmt: skip

    def regridded(self, weight: QTensor) -> QTensor:
        """``weight`` with its codes and zero points, on these scales."""
        return replace(
            weight, scale=self.scale, multiplier=self.multiplier, tensor_scale=self.tensor_scale, offset=self.offset,
            offset_multiplier=self.offset_multiplier,
        )  # fmt: skip

    @property
    def step(self) -> Tensor:
        """Of each group, float32 (out, groups); zero or negative in some of GGUF's formats."""
        if self.scheme.format.layout is not None:
            return of_groups(self.scheme, self.scale, self.multiplier)
        step = self.scale.to(torch.float32)
        if self.multiplier is not None:
            step = self.multiplier.to(torch.float32) * step
        return step if self.tensor_scale is None else step * self.tensor_scale

    @property
    def divisor(self) -> Tensor:
        """``step`` to divide by: a step of zero, whose group has one value alone, is a tiny one."""
        step = self.step
        return step if self.scheme.format.layout is None else torch.where(step == 0, _NO_STEP, step)

    @property
    def zeros(self) -> Tensor | None:
        """The zero point of each group, float32 (out, groups), a real number where the format is shifted; None where none is."""
        if self.offset is not None:
            return of_groups(self.scheme, self.offset, self.offset_multiplier) / self.divisor
        return None if self.zero is None else self.zero.to(torch.float32)

    def columns(self, inputs: int) -> tuple[Tensor, Tensor]:
        """Step and zero point of every weight, float32 (out, inputs) each."""
        size = self.scheme.size(inputs)
        step, zeros = self.divisor.repeat_interleave(size, 1)[:, :inputs], self.zeros
        if zeros is None:
            return step, torch.zeros_like(step)
        return step, zeros.repeat_interleave(size, 1)[:, :inputs]


def qparams_between(low: Tensor, high: Tensor, scheme: WeightScheme) -> WeightQParams:
    """What covers ``low``..``high`` (out, groups), widened to hold zero. Raises EngineError where they are not finite."""
    low, high = low.clamp_max(0), high.clamp_min(0)
    if scheme.format.shifted:
        # Groups that need no offset, as those without a spread, get none.
        step = (high - low) / scheme.high
        return WeightQParams.stored(scheme, step, -low / torch.where(step == 0, 1.0, step))
    if scheme.format.layout is not None and -scheme.low > scheme.high:
        # The end with one value more is for the larger magnitude: the sign of the step turns the grid.
        return WeightQParams.stored(scheme, torch.where(high > -low, high, low) / scheme.low)
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


def in_blocks(
    scheme: WeightScheme, step: Tensor, offset: Tensor | None = None, stretch: Tensor | float = 1.0, offset_stretch: Tensor | float = 1.0
) -> WeightQParams:
    """Steps, and what is subtracted, (out, groups) each, as blocks of GGUF store them. The float16 scales of blocks with several groups
    are those that reach to the largest, times ``stretch``, a number or (out, blocks). Raises EngineError where they are not finite, or
    beyond float16."""
    for wanted in (step, *(() if offset is None else (offset,))):
        _refuse_nonfinite(wanted)
        if wanted.numel() and wanted.abs().max() > LARGEST:
            raise EngineError(f"a weight group needs a step of {wanted.abs().max():.3g}, beyond float16: take a format of integers")
    layout = scheme.format.layout
    assert layout is not None
    if layout.offset and offset is None:
        offset = torch.zeros_like(step)
    if layout.multipliers is None:
        return WeightQParams(scheme, step.to(torch.float16), None, None, None, None if offset is None else offset.to(torch.float16))
    scale, multiplier = _two_levels(step, scheme.groups_of_scale, *layout.multipliers, stretch)
    if offset is None:
        return WeightQParams(scheme, scale, None, multiplier)
    subtracted, times = _two_levels(offset.clamp_min(0), scheme.groups_of_scale, *layout.multipliers, offset_stretch)
    return WeightQParams(scheme, scale, None, multiplier, None, subtracted, times)


def _two_levels(values: Tensor, groups: int, low: int, high: int, stretch: Tensor | float) -> tuple[Tensor, Tensor]:
    """``values`` (out, groups) as one float16 for each ``groups`` of a row and int8 multiples of it from ``low`` to ``high``."""
    filled = torch.nn.functional.pad(values, (0, -values.shape[1] % groups)).reshape(len(values), -1, groups)
    largest = filled.gather(2, filled.abs().argmax(2, keepdim=True))[:, :, 0]
    scale = (largest / (low if low < 0 else high) * stretch).to(torch.float16)
    divisor = scale.to(torch.float32)[:, :, None]
    times = (filled / torch.where(divisor == 0, 1.0, divisor)).round_().clamp_(low, high)
    times = torch.where(divisor == 0, 0.0, times).reshape(len(values), -1)[:, : values.shape[1]]
    return scale, times.to(torch.int8)


def _refuse_nonfinite(scale: Tensor) -> None:
    if not torch.isfinite(scale).all():
        raise EngineError("the weights hold NaN or infinity: they cannot be quantized; load other weights")


def power_of_two(step: Tensor, high: float) -> Tensor:
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
    return qparams.with_codes(form.encode(form.round_(weight.to(torch.float32) / step, zero if form.moved else None)))
