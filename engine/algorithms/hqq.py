"""Half-quadratic quantization (Badri & Shaji 2023, https://mobiusml.github.io/hqq_blog): grids from the weights alone.

The error W - deq(W) is measured by the norm l_p with p < 1, which lets a few outliers go. Splitting it off as a variable E
gives two steps in turn: E by generalized soft thresholding, then the grid that fits W - E best. The paper fits a real-valued
zero point with the scale held; here the stored zero point is an integer, so the scale is fitted too (least squares), the
threshold is in units of the step, and the best stored grid of all rounds is kept.
"""

from __future__ import annotations

import torch
from torch import Tensor

from engine.numerics.scheme import WeightScheme, in_groups
from engine.numerics.weights import WeightQParams, qparams_between

NORM, SHARPNESS, GROWTH, ROUNDS = 0.7, 10.0, 1.01, 20


def hqq(weight: Tensor, spec: WeightScheme, second: Tensor | None = None) -> WeightQParams:
    """The grid of least l_0.7 error for ``weight`` (out, in), group by group. ``second`` is not looked at."""
    grouped = in_groups(weight.to(torch.float32), spec)
    inside = in_groups(torch.ones(1, weight.shape[1], device=weight.device), spec)
    start = qparams_between(grouped.amin(2), grouped.amax(2), spec)
    shifted = spec.format.shifted
    scale = start.divisor
    zero = torch.zeros_like(scale) if start.zeros is None else start.zeros
    best_step, best_zero = scale, zero
    least = _error(grouped, scale, zero, spec)
    sharpness = SHARPNESS
    for _ in range(ROUNDS):
        codes = spec.format.round_(grouped / scale[:, :, None] + zero[:, :, None])
        off = grouped / scale[:, :, None] - codes + zero[:, :, None]
        kept = off.sign() * (off.abs() - off.abs().clamp_min(1e-8) ** (NORM - 1) / sharpness).clamp_min_(0)
        target = (grouped / scale[:, :, None] - kept) * inside
        scale, zero = _fit(codes * inside, target, scale, inside.sum(2), spec)
        sharpness *= GROWTH
        held = torch.where(start.step < 0, scale.clamp_min(start.step), scale.clamp_max(start.step))
        grid = WeightQParams.stored(spec, held, zero if shifted else None)
        stored = grid.divisor
        real = grid.zeros
        whole = real if real is not None else zero if spec.symmetric else spec.format.round(zero)
        error = _error(grouped, stored, whole, spec)
        better = error < least
        least = torch.where(better, error, least)
        best_step, best_zero = torch.where(better, stored, best_step), torch.where(better, whole, best_zero)
    zeros = None if spec.symmetric else best_zero if shifted else best_zero.to(torch.uint8)
    return WeightQParams.stored(spec, best_step, zeros)


def _fit(codes: Tensor, target: Tensor, scale: Tensor, count: Tensor, spec: WeightScheme) -> tuple[Tensor, Tensor]:
    """Scale and zero point (out, groups) with ``scale * (codes - zero)`` nearest to ``target`` (in units of ``scale``)."""
    if spec.symmetric:
        slope = (codes * target).sum(2) / codes.square().sum(2).clamp_min(1e-12)
        return scale * _sane(slope), torch.zeros_like(scale)
    code_mean, target_mean = codes.sum(2) / count, target.sum(2) / count
    spread = codes.square().sum(2) / count - code_mean.square()
    slope = _sane(((codes * target).sum(2) / count - code_mean * target_mean) / spread.clamp_min(1e-12))
    return scale * slope, (code_mean - target_mean / slope).clamp(0, spec.high)


def _sane(slope: Tensor) -> Tensor:
    """A group of one value fits any slope: such a one stays as it is."""
    return torch.where((slope > 0.25) & (slope < 2), slope, torch.ones_like(slope))


def _error(grouped: Tensor, scale: Tensor, zero: Tensor, spec: WeightScheme) -> Tensor:
    step, shift = scale[:, :, None], zero[:, :, None]
    codes = spec.format.round_(grouped / step + shift)
    return (codes.sub_(shift).mul_(step).sub_(grouped)).abs_().pow_(NORM).sum(2)
