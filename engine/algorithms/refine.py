"""Integers and scales improved in turn once GPTQ has chosen them.

Given the scales, integers are looked at again one input at a time, each put where the others leave the least error
(coordinate descent as in QuantEase, Behdin et al. 2023, arXiv:2309.01885). Given the integers, the scales of a row are a
linear least-squares problem with one unknown a group. Neither step can raise the error but by float16's rounding of the scales.
"""

from __future__ import annotations

import torch
from torch import Tensor

from engine.numerics.grouped import Grid, GroupedWeight, held, in_groups

# What is added to the diagonal, of its mean: GPTQ's own damping.
DAMPING = 0.01


def refine(start: GroupedWeight, weight: Tensor, second: Tensor, rounds: int = 3) -> GroupedWeight:
    """The rounding of ``weight`` (out, in) of least error tr(D H Dᵀ) that ``rounds`` of both steps find from ``start``, H being
    the inputs' second moments (in, in), damped."""
    hessian = second + DAMPING * second.diagonal().mean() * torch.eye(len(second), device=second.device)
    best, least = start, _error(start, weight, hessian)
    for _ in range(rounds):
        start = descend(rescale(start, weight, hessian), weight, hessian)
        error = _error(start, weight, hessian)
        if error >= least:
            break
        best, least = start, error
    return best


def descend(start: GroupedWeight, weight: Tensor, hessian: Tensor) -> GroupedWeight:
    """One pass over the inputs, largest first."""
    spec = start.spec
    step, zero = (part.T.contiguous() for part in start.grid.columns(weight.shape[1]))
    codes = start.values.to(torch.float32).T.contiguous()
    rounded = (codes - zero).mul_(step)
    pull = hessian @ (rounded - weight.T)
    diagonal = hessian.diagonal()
    for column in torch.argsort(diagonal, descending=True, stable=True).tolist():
        if float(diagonal[column]) <= 0:
            continue
        wanted = (rounded[column] - pull[column] / diagonal[column]).div_(step[column])
        codes[column] = wanted.round_().add_(zero[column]).clamp_(spec.low, spec.high)
        change = (codes[column] - zero[column]).mul_(step[column]).sub_(rounded[column])
        rounded[column] += change
        pull.addr_(hessian[:, column], change)
    return GroupedWeight(codes.T.contiguous().to(start.values.dtype), start.grid)


def rescale(start: GroupedWeight, weight: Tensor, hessian: Tensor) -> GroupedWeight:
    """The scales of least error for the integers as they are, held to within twofold of what they were."""
    spec, inputs = start.spec, weight.shape[1]
    groups, size = spec.groups(inputs), spec.size(inputs)
    codes = start.values.to(torch.float32) - start.grid.columns(inputs)[1]
    wanted = in_groups((weight @ hessian).mul_(codes), spec).sum(2)
    system = torch.stack(
        [
            in_groups((codes[:, g * size : (g + 1) * size] @ hessian[g * size : (g + 1) * size]).mul_(codes), spec).sum(2)
            for g in range(groups)
        ],
        1,
    ).to(torch.float64)
    before = start.scale.to(torch.float64)
    # A group of zeros has no say in its scale: a little of what it was keeps the system solvable.
    ridge = 1e-4 * system.diagonal(dim1=1, dim2=2).mean(1).clamp_min(1e-30)
    system.diagonal(dim1=1, dim2=2).add_(ridge[:, None])
    scale = torch.linalg.solve(system, wanted.to(torch.float64) + ridge[:, None] * before)
    scale = torch.where((scale > before / 2) & (scale < before * 2), scale, before)
    return GroupedWeight(start.values, Grid(spec, held(scale.to(torch.float32)), start.zero))


def _error(rounded: GroupedWeight, weight: Tensor, hessian: Tensor) -> float:
    change = rounded.dequantize().sub_(weight)
    return float((change @ hessian).mul_(change).sum())
