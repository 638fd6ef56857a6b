"""GPTQ (Frantar et al. 2022, arXiv:2210.17323): column after column is rounded, and what that costs at the layer's output is
made good by the columns still to come."""

from __future__ import annotations

import torch
from torch import Tensor

from engine.errors import EngineError
from engine.numerics.qtensor import QTensor
from engine.numerics.weights import WeightQParams

# Columns whose corrections are gathered before the rest of the matrix sees them: the same result, fewer passes over memory.
BLOCK = 128


def gptq(weight: Tensor, grid: WeightQParams, second: Tensor, damping: float = 0.01, act_order: bool = True) -> tuple[QTensor, str | None]:
    """``weight`` (out, in) on ``grid``, by the inputs' second moments (in, in), and a note where more damping
    was needed than asked for.

    ``damping`` is the share of the mean of the diagonal that is added to it. With ``act_order`` the columns of the
    largest inputs go first; the groups stay those of the inputs' own order, so no permutation is stored. Inputs that are
    always zero are rounded to nearest. Raises EngineError where no damping makes the matrix positive definite.
    """
    inputs, form = weight.shape[1], grid.scheme.format
    diagonal = second.diagonal()
    dead = diagonal <= 0
    order = torch.argsort(diagonal, descending=True, stable=True) if act_order else torch.arange(inputs, device=weight.device)
    hessian = second.to(torch.float64)[order][:, order]
    hessian[dead[order], dead[order]] = 1.0
    inverse, note = _inverse_factor(hessian, float(diagonal[~dead].mean()) if not bool(dead.all()) else 1.0, damping)
    step, zero = (part[:, order].T.contiguous() for part in grid.columns(inputs))
    rest = weight.to(torch.float32)[:, order].T.contiguous()
    codes = torch.empty_like(rest)
    for start in range(0, inputs, BLOCK):
        stop = min(start + BLOCK, inputs)
        errors = torch.empty_like(rest[start:stop])
        for column in range(start, stop):
            at = form.round_(rest[column] / step[column], zero[column] if form.moved else None)
            codes[column] = at
            error = at.sub(zero[column]).mul_(step[column]).sub_(rest[column]).neg_().div_(inverse[column, column])
            rest[column:stop].addr_(inverse[column, column:stop], error, alpha=-1)
            errors[column - start] = error
        rest[stop:].addmm_(inverse[start:stop, stop:].T, errors, alpha=-1)
    back = torch.argsort(order)
    return grid.with_codes(form.encode(codes[back].T.contiguous())), note


def _inverse_factor(hessian: Tensor, scale: float, damping: float) -> tuple[Tensor, str | None]:
    """The upper Cholesky factor of the damped inverse, float32. Tenfold more damping until there is one."""
    eye = torch.eye(len(hessian), dtype=hessian.dtype, device=hessian.device)
    wanted = damping
    while damping <= 1e3:
        lower, failed = torch.linalg.cholesky_ex(hessian + damping * scale * eye)
        if not int(failed):
            upper, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
            if not int(failed) and bool(torch.isfinite(upper).all()):
                note = None if damping == wanted else f"damped {damping:g} instead of {wanted:g}: the inputs were not independent enough"
                return upper.to(torch.float32), note
        damping = max(damping, 1e-4) * 10
    raise EngineError("the calibration inputs of a layer give no positive definite matrix: calibrate on more text or take another method")
