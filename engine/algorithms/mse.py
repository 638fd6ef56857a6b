"""The clipping of each group that leaves the least squared error, found by search."""

from __future__ import annotations

import torch
from torch import Tensor

from engine.algorithms.block_grid import block_grid, diagonal_blocks, group_error
from engine.numerics.scheme import WeightScheme, in_groups
from engine.numerics.weights import WeightQParams, qparams_between


def mse(weight: Tensor, spec: WeightScheme, second: Tensor | None = None) -> WeightQParams:
    """The grid of least squared error for ``weight`` (out, in), group by group.

    With ``second``, the inputs' second moments (in, in), the error is that of the group's share of the layer's output:
    eᵀ H_g e with H_g the group's block of ``second``, as AWQ's clip search has it (Lin et al. 2023, arXiv:2306.00978,
    section 3.2, from activations there). Without, it is eᵀ e. Both ends shrink together first, then each alone. GGUF's blocks, whose
    scales and offsets are chosen together, have a search of their own.
    """
    if spec.format.layout is not None:
        return block_grid(weight, spec, second)
    grouped = in_groups(weight.to(torch.float32), spec)
    blocks = None if second is None else diagonal_blocks(second, spec)
    low, high = grouped.amin(2).clamp_max(0), grouped.amax(2).clamp_min(0)
    if spec.symmetric:
        high = torch.maximum(high, -low)
        low = -high
    shrink = [(factor, factor) for factor in torch.linspace(1.0, 0.3 if spec.bits > 3 else 0.2, 29).tolist()]
    if spec.format.scale == torch.float8_e8m0fnu:
        # Powers of two: the next above, in which nothing saturates, as well.
        shrink.insert(0, (2.0, 2.0))
    low, high, least = _best(grouped, blocks, spec, low, high, shrink)
    near = torch.linspace(0.9, 1.1, 9).tolist()
    low, high, least = _best(grouped, blocks, spec, low, high, [(f, f if spec.symmetric else 1.0) for f in near], least)
    if not spec.symmetric:
        low, high, least = _best(grouped, blocks, spec, low, high, [(1.0, factor) for factor in near], least)
    return qparams_between(low, high, spec)


def _best(
    grouped: Tensor,
    blocks: Tensor | None,
    spec: WeightScheme,
    low: Tensor,
    high: Tensor,
    factors: list[tuple[float, float]],
    least: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The best ``(low * a, high * b)`` of each group over the pairs (a, b), and its error."""
    best_low, best_high = low, high
    least = torch.full_like(low, torch.inf) if least is None else least
    for below, above in factors:
        error = group_error(grouped, qparams_between(low * below, high * above, spec), blocks)
        better = error < least
        least = torch.where(better, error, least)
        best_low, best_high = torch.where(better, low * below, best_low), torch.where(better, high * above, best_high)
    return best_low, best_high, least


def imatrix(weight: Tensor, spec: WeightScheme, second: Tensor | None = None) -> WeightQParams:
    """``mse`` with the squared error of each weight counted by its input's second moment alone, as llama.cpp's importance matrix has it:
    the error at the layer's output were the inputs independent and without a mean."""
    return mse(weight, spec, None if second is None else torch.diag(second.diagonal()))
