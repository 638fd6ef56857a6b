"""Integers and scales improved in turn once GPTQ has chosen them.

Given the scales, integers are looked at again one input at a time, each put where the others leave the least error
(coordinate descent as in QuantEase, Behdin et al. 2023, arXiv:2309.01885). Given the integers, the scales of a row are a
linear least-squares problem with one unknown a group. Neither step can raise the error but by float16's rounding of the scales.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from engine.algorithms.gptq import gptq
from engine.numerics.qtensor import QTensor
from engine.numerics.scheme import in_groups
from engine.numerics.weights import WeightQParams

# What is added to the diagonal, of its mean: GPTQ's own damping.
DAMPING = 0.01


def refine(start: QTensor, weight: Tensor, second: Tensor, rounds: int = 3) -> QTensor:
    """The rounding of ``weight`` (out, in) of least error tr(D H Dᵀ) that ``rounds`` of both steps find from ``start``, H being
    the inputs' second moments (in, in), damped."""
    hessian = second.clone()
    hessian.diagonal().add_(DAMPING * second.diagonal().mean())
    best, least = start, _error(start, weight, hessian)
    for _ in range(rounds):
        start = descend(rescale(start, weight, hessian), weight, hessian)
        error = _error(start, weight, hessian)
        if error >= least:
            break
        best, least = start, error
    return best


def gptq_refined(weight: Tensor, grid: WeightQParams, second: Tensor) -> tuple[QTensor, str | None]:
    """GPTQ, then ``refine``."""
    rounded, note = gptq(weight, grid, second)
    return refine(rounded, weight, second), note


def descend(start: QTensor, weight: Tensor, hessian: Tensor) -> QTensor:
    """One pass over the inputs, largest first."""
    form = start.format
    step, zero = (part.T.contiguous() for part in WeightQParams.of(start).columns(weight.shape[1]))
    codes = form.decode(start.codes).T.contiguous()
    rounded = (codes - zero).mul_(step)
    pull = hessian @ (rounded - weight.T)
    diagonal = hessian.diagonal()
    for column in torch.argsort(diagonal, descending=True, stable=True).tolist():
        if float(diagonal[column]) <= 0:
            continue
        wanted = (rounded[column] - pull[column] / diagonal[column]).div_(step[column])
        codes[column] = form.round_(wanted, zero[column] if form.moved else None)
        change = (codes[column] - zero[column]).mul_(step[column]).sub_(rounded[column])
        rounded[column] += change
        pull.addr_(hessian[:, column], change)
    return replace(start, codes=form.encode(codes.T.contiguous()))


def rescale(start: QTensor, weight: Tensor, hessian: Tensor) -> QTensor:
    """The scales of least error for the integers as they are, held to within twofold of what they were."""
    spec, inputs = start.scheme, weight.shape[1]
    groups, size = spec.groups(inputs), spec.size(inputs)
    codes = start.format.decode(start.codes) - WeightQParams.of(start).columns(inputs)[1]
    wanted = in_groups((weight @ hessian).mul_(codes), spec).sum(2)
    system = torch.stack(
        [
            in_groups((codes[:, g * size : (g + 1) * size] @ hessian[g * size : (g + 1) * size]).mul_(codes), spec).sum(2)
            for g in range(groups)
        ],
        1,
    ).to(torch.float64)
    before = WeightQParams.of(start).step.to(torch.float64)
    # A group of zeros has no say in its scale: a little of what it was keeps the system solvable.
    ridge = 1e-4 * system.diagonal(dim1=1, dim2=2).mean(1).clamp_min(1e-30)
    system.diagonal(dim1=1, dim2=2).add_(ridge[:, None])
    scale = torch.linalg.solve(system, wanted.to(torch.float64) + ridge[:, None] * before)
    sign = before.sign()
    scale = torch.where((scale * sign > before * sign / 2) & (scale * sign < before * sign * 2), scale, before)
    zeros = WeightQParams.of(start).zeros if start.format.shifted else start.zero
    return WeightQParams.stored(spec, scale.to(torch.float32), zeros).regridded(start)


def _error(rounded: QTensor, weight: Tensor, hessian: Tensor) -> float:
    change = rounded.dequantize().sub_(weight)
    return float((change @ hessian).mul_(change).sum())
