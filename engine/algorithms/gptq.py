"""GPTQ (Frantar et al. 2022, arXiv:2210.17323): column after column is rounded, and what that costs at the layer's output is
made good by the columns still to come.

It is computed in the form of LDLQ (Chee et al. 2023, arXiv:2307.13304, theorem 6), whose integers are the same: of a factor M of the
inputs' moments H = M D Mᵀ, with M unit upper triangular in the order of the columns, each column is rounded after the errors before it
were added, times M. No inverse is needed, and one Cholesky factor in float64, made in place, is all the memory that a wide layer asks.
"""

from __future__ import annotations

import torch
from torch import Tensor

from engine.algorithms.gram import strips
from engine.errors import EngineError
from engine.numerics.cholesky import factor_in_place
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
    inputs, form, size = weight.shape[1], grid.scheme.format, grid.scheme.size(weight.shape[1])
    diagonal = second.diagonal()
    first = torch.argsort(diagonal, descending=True, stable=True) if act_order else torch.arange(inputs, device=weight.device)
    # Backwards, so that the lower factor of the columns is the upper one of their order.
    order = first.flip(0)
    factor, note = _factor(second, order, damping)
    scale = factor.diagonal().clone()
    divisor, zeros = grid.divisor, grid.zeros
    rest = weight.to(torch.float32).T.index_select(0, order)
    for stop in range(inputs, 0, -BLOCK):
        start = max(stop - BLOCK, 0)
        columns = order[start:stop]
        step = divisor[:, columns // size].T.contiguous()
        zero = torch.zeros_like(step) if zeros is None else zeros[:, columns // size].T.contiguous()
        # At first the weights as they were.
        errors = weight[:, columns].to(torch.float32).T.contiguous()
        within = (factor[start:stop, start:stop] / scale[start:stop]).to(torch.float32)
        for column in range(stop - start - 1, -1, -1):
            now = rest[start + column]
            now.copy_(form.round_(now / step[column], zero[column] if form.moved else None))
            errors[column].sub_((now - zero[column]).mul_(step[column]))
            rest[start : start + column].addr_(within[column, :column], errors[column])
        if start:
            rest[:start].addmm_((factor[start:stop, :start] / scale[:start]).to(torch.float32).T, errors)
    codes = torch.empty(weight.shape, dtype=form.storage, device=weight.device)
    codes[:, order] = form.encode(rest).T
    return grid.with_codes(codes), note


def _factor(second: Tensor, order: Tensor, damping: float) -> tuple[Tensor, str | None]:
    """The lower Cholesky factor of ``second``, damped, its inputs in ``order``; float64. Tenfold more damping until there is one."""
    diagonal = second.diagonal()
    dead = diagonal <= 0
    scale = 1.0 if bool(dead.all()) else float(diagonal[~dead].mean())
    held = torch.empty(second.shape, dtype=torch.float64, device=second.device)
    wanted = damping
    while damping <= 1e3:
        for part in strips(len(second)):
            held[part] = second[order[part]][:, order].to(torch.float64)
        held.diagonal().masked_fill_(dead[order], 1.0).add_(damping * scale)
        factor = factor_in_place(held)
        if factor is not None and bool(torch.isfinite(factor.diagonal()).all()):
            note = None if damping == wanted else f"damped {damping:g} instead of {wanted:g}: the inputs were not independent enough"
            return factor, note
        damping = max(damping, 1e-4) * 10
    raise EngineError("the calibration inputs of a layer give no positive definite matrix: calibrate on more text or take another method")
