"""Weights of convolutions and linear layers to signed integers, with one float32 scale for the tensor or each channel, or scales of
two levels for groups of inputs: what the integer kernels of the graph lowering take.

Weights are symmetric: q = clamp(round(w / scale), -2^(bits-1), 2^(bits-1) - 1) (Nagel et al. 2021, arXiv:2106.08295, section 2.2).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from engine.errors import EngineError
from engine.numerics.formats import NumberFormat, integer
from engine.numerics.qtensor import QTensor
from engine.recipe.spec import WeightSpec


def quantize_weight(weight: Tensor, spec: WeightSpec) -> QTensor:
    """Round to nearest as ``spec`` asks. ``weight`` is (out, ...) and finite, else EngineError."""
    if not torch.isfinite(weight).all():
        raise EngineError("the weights hold NaN or infinity: they cannot be quantized; load other weights or train again")
    flat, form = weight.detach().to(torch.float32).flatten(1), integer(spec.bits)
    if spec.granularity == "per-group":
        return _quantize_groups(flat, weight.shape, spec)
    rows = flat.reshape(1, -1) if spec.granularity == "per-tensor" else flat
    scale = best_scale(rows, spec).expand(flat.shape[0]).clone()[:, None]
    return QTensor(form.encode(form.round_(flat / scale)).reshape(weight.shape), scale, None, form)


def best_scale(rows: Tensor, spec: WeightSpec) -> Tensor:
    """One step for each row of a (rows, n) matrix: from its largest magnitude, or the clip of least squared error."""
    form = integer(spec.bits)
    top = rows.abs().amax(1).clamp_min(1e-12) / form.high
    if spec.method != "mse":
        return top
    # From 4 bits up the clipping error of bell-shaped weights only grows below a third of the range; with fewer levels
    # heavy tails are best cut to a tenth.
    factors = [0.3 + 0.05 * i for i in range(17)] if spec.bits > 3 else [0.1 + 0.05 * i for i in range(21)]
    best, least = _least_error(rows, form, factors, top, top)
    return _least_error(rows, form, torch.linspace(0.9625, 1.0375, 7).tolist(), best, best, least)[0]


def _least_error(
    rows: Tensor, form: NumberFormat, factors: list[float], around: Tensor, best: Tensor, least: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The best of ``around * factor`` for each row, and its squared error."""
    least = torch.full_like(around, math.inf) if least is None else least
    for factor in factors:
        step = around * factor
        error = form.round_(rows / step[:, None]).mul_(step[:, None]).sub_(rows).square_().sum(1)
        better = error < least
        best, least = torch.where(better, step, best), torch.where(better, error, least)
    return best, least


def _quantize_groups(flat: Tensor, shape: torch.Size, spec: WeightSpec) -> QTensor:
    out, inputs = flat.shape
    size, form = spec.group_size, integer(spec.bits)
    groups = -(-inputs // size)
    padded = torch.nn.functional.pad(flat, (0, groups * size - inputs)).reshape(out * groups, size)
    wanted = best_scale(padded, spec).reshape(out, groups)
    # The products of codes and multipliers fit in int8.
    largest = 128 // 2 ** (spec.bits - 1)
    scale = wanted.amax(1) / largest
    ratio = wanted / scale[:, None]
    best, least = torch.full_like(ratio, largest), torch.full_like(ratio, math.inf)
    for candidate in (ratio.floor(), ratio.ceil()):
        multiplier = candidate.clamp(1, largest)
        step = (multiplier * scale[:, None]).reshape(-1, 1)
        error = (form.round_(padded / step) * step).sub_(padded).square_().sum(1).reshape(out, groups)
        better = error < least
        best, least = torch.where(better, multiplier, best), torch.where(better, error, least)
    step = (best * scale[:, None]).reshape(-1, 1)
    codes = form.round_(padded / step).reshape(out, groups * size)[:, :inputs]
    return QTensor(form.encode(codes).reshape(shape), scale[:, None], None, form, size, best.to(torch.uint8))
