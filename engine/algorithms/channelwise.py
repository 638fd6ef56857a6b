"""Weights of convolutions and linear layers to signed integers, with one float32 scale for the tensor or each channel, or scales of
two levels for groups of inputs: what the integer kernels of the graph lowering take.

Weights are symmetric: q = clamp(round(w / scale), -2^(bits-1), 2^(bits-1) - 1) (Nagel et al. 2021, arXiv:2106.08295, section 2.2).
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from engine.algorithms.registry import method, minmax, mse
from engine.errors import EngineError
from engine.numerics.formats import NumberFormat, integer
from engine.numerics.qtensor import QTensor
from engine.numerics.scheme import WeightScheme, scheme_of
from engine.numerics.weights import WeightQParams, quantize
from engine.recipe.spec import WeightSpec

if TYPE_CHECKING:
    from engine.algorithms.registry import Gridding


def quantize_weight(weight: Tensor, spec: WeightSpec) -> QTensor:
    """``weight`` (out, ...) rounded to nearest on the grid of the method that ``spec`` names. Raises EngineError where it is not
    finite."""
    flat = rows_of(weight)
    return shaped(quantize(flat, channel_grid(flat, spec, steps(flat, spec, method(spec.method).grid))), weight.shape)


def rows_of(weight: Tensor) -> Tensor:
    """float32 (out, inputs). Raises EngineError where it is not finite."""
    if not torch.isfinite(weight).all():
        raise EngineError("the weights hold NaN or infinity: they cannot be quantized; load other weights or train again")
    return weight.detach().to(torch.float32).flatten(1)


def shaped(rounded: QTensor, shape: torch.Size) -> QTensor:
    """A quantized matrix (out, inputs) as the weight of ``shape`` that it is."""
    return replace(rounded, codes=rounded.codes.reshape(shape))


def steps(flat: Tensor, spec: WeightSpec, gridding: Gridding) -> Tensor:
    """The step that ``gridding`` wants for each part of ``flat`` (out, inputs) that has one of its own: float32 (out, groups)."""
    out, inputs = flat.shape
    scheme = scheme_of(replace(spec, symmetric=True))
    if spec.granularity == "per-group":
        size, groups = spec.group_size, -(-inputs // spec.group_size)
        rows = torch.nn.functional.pad(flat, (0, groups * size - inputs)).reshape(out * groups, size)
    else:
        rows = flat.reshape(1, -1) if spec.granularity == "per-tensor" else flat
    if gridding in (minmax, mse):
        found = best_scale(rows, replace(spec, method="mse" if gridding == mse else "nearest"))
    else:
        found = _by_method(rows, scheme, gridding)
    return found.reshape(-1, scheme.groups(inputs)).expand(out, -1)


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


def _by_method(rows: Tensor, scheme: WeightScheme, gridding: Gridding) -> Tensor:
    """The steps of a method that stores them in float16: found on rows of magnitude 1, which float16 holds well."""
    top = rows.abs().amax(1, keepdim=True).clamp_min(1e-12)
    return gridding(rows / top, replace(scheme, group_size=0), None).scale[:, 0].to(torch.float32) * top[:, 0]


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


def channel_grid(flat: Tensor, spec: WeightSpec, wanted: Tensor) -> WeightQParams:
    """The grid nearest to the steps ``wanted`` (out, groups) that integer kernels take: a float32 scale for each channel, and for
    groups multipliers of it."""
    scheme = scheme_of(replace(spec, symmetric=True))
    if spec.granularity != "per-group":
        return WeightQParams(scheme, wanted.clone(), None)
    out, inputs = flat.shape
    size, form, groups = spec.group_size, scheme.format, wanted.shape[1]
    padded = torch.nn.functional.pad(flat, (0, groups * size - inputs)).reshape(out * groups, size)
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
    return WeightQParams(scheme, scale[:, None], None, best.to(torch.uint8))
