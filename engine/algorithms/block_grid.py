"""Scales and offsets of GGUF's blocks with the least squared error, found by search.

First each group by itself: for several clippings the weights are rounded, and the step and offset that fit those integers best are a
least-squares problem of one or two unknowns (``make_qkx2_quants`` of llama.cpp's ``ggml-quants.c``). Then the scales of whole blocks,
whose integer multiples the groups' steps are: a few around the one that just reaches the largest step, and all are rounded again.
"""

from __future__ import annotations

import torch
from torch import Tensor

from engine.numerics.scheme import WeightScheme, in_groups
from engine.numerics.weights import WeightQParams, in_blocks, minmax

# Parts of a group's range that are tried, and of the largest step's own scale.
CLIPS = tuple(0.5 + 0.05 * step for step in range(13))
STRETCHES = (0.86, 0.9, 0.94, 0.97, 1.03, 1.06, 1.1, 1.16)


def block_grid(weight: Tensor, spec: WeightScheme, second: Tensor | None = None) -> WeightQParams:
    """The grid of one of GGUF's formats for ``weight`` (out, in). ``second``, the inputs' second moments (in, in), makes the error that
    of each group's share of the layer's output; no block has more of it than on the min-max grid."""
    grouped = in_groups(weight.to(torch.float32), spec)
    blocks = None if second is None else diagonal_blocks(second, spec)
    inside = in_groups(torch.ones(1, weight.shape[1], device=weight.device), spec)
    importance = inside if second is None else in_groups(second.diagonal()[None].clamp_min(1e-12 * float(second.diagonal().mean())), spec)
    importance = importance * inside
    fit = _shifted if spec.format.shifted else _centred
    step, offset = fit(grouped, importance, blocks, spec)
    best = minmax(weight, spec)
    least = _by_block(group_error(grouped, best, blocks), spec)
    ones = torch.ones_like(best.scale, dtype=torch.float32)
    best_stretch, best_offset_stretch = ones, ones
    found = torch.zeros_like(ones, dtype=torch.bool)
    stretches = (1.0, *STRETCHES) if spec.format.layout is not None and spec.format.layout.multipliers else (1.0,)
    for factor in stretches:
        error = _by_block(group_error(grouped, in_blocks(spec, step, offset, factor), blocks), spec)
        better = error < least
        least, found = torch.where(better, error, least), found | better
        best_stretch = torch.where(better, factor, best_stretch)
    for factor in stretches[1:] if offset is not None else ():
        error = _by_block(group_error(grouped, in_blocks(spec, step, offset, best_stretch, factor), blocks), spec)
        better = error < least
        least, found = torch.where(better, error, least), found | better
        best_offset_stretch = torch.where(better, factor, best_offset_stretch)
    return _where(found, in_blocks(spec, step, offset, best_stretch, best_offset_stretch), best, spec)


def diagonal_blocks(second: Tensor, spec: WeightScheme) -> Tensor:
    """The groups' own blocks (groups, size, size) of a matrix (in, in); an incomplete last one is filled up with zeros."""
    size, groups = spec.size(len(second)), spec.groups(len(second))
    padded = torch.nn.functional.pad(second, (0, size * groups - len(second), 0, size * groups - len(second)))
    return torch.stack([padded[g * size : (g + 1) * size, g * size : (g + 1) * size] for g in range(groups)])


def group_error(grouped: Tensor, grid: WeightQParams, blocks: Tensor | None) -> Tensor:
    """Squared error (out, groups) of rounding ``grouped`` (out, groups, size) to nearest."""
    zeros = grid.zeros
    return _rounded_error(grouped, grid.divisor, None if zeros is None else zeros, grid.scheme, blocks)


def _rounded_error(grouped: Tensor, steps: Tensor, zeros: Tensor | None, spec: WeightScheme, blocks: Tensor | None) -> Tensor:
    step, zero = steps[:, :, None], None if zeros is None else zeros[:, :, None]
    rounded = spec.format.round_(grouped / step, zero)
    error = (rounded if zero is None else rounded.sub_(zero)).mul_(step).sub_(grouped)
    return _summed(error, blocks)


def _summed(error: Tensor, blocks: Tensor | None) -> Tensor:
    """(out, groups) of the errors of weights (out, groups, size)."""
    if blocks is None:
        return error.square_().sum(2)
    by_group = error.transpose(0, 1)
    return torch.matmul(by_group, blocks).mul_(by_group).sum(2).T


def _centred(grouped: Tensor, importance: Tensor, blocks: Tensor | None, spec: WeightScheme) -> tuple[Tensor, None]:
    """The step of each group, (out, groups), where nothing is subtracted."""
    low, high = grouped.amin(2).clamp_max(0), grouped.amax(2).clamp_min(0)
    widest = torch.where(high > -low, high, low) / spec.low
    best, least = widest, torch.full_like(widest, torch.inf)
    for clip in (*CLIPS, *(-part for part in CLIPS)):
        codes = spec.format.round_(grouped / _nonzero(widest * clip)[:, :, None])
        step = (codes * grouped * importance).sum(2) / (codes.square() * importance).sum(2).clamp_min(1e-30)
        error = _summed(codes * step[:, :, None] - grouped, blocks)
        better = error < least
        best, least = torch.where(better, step, best), torch.where(better, error, least)
    return best, None


def _shifted(grouped: Tensor, importance: Tensor, blocks: Tensor | None, spec: WeightScheme) -> tuple[Tensor, Tensor]:
    """The step of each group and what is subtracted, (out, groups) each; not below zero where blocks store multiples of it."""
    layout = spec.format.layout
    positive = layout is not None and layout.multipliers is not None
    low, high = grouped.amin(2), grouped.amax(2)
    low = low.clamp_max(0) if positive else low
    best, best_offset = (high - low) / spec.high, -low
    least = torch.full_like(best, torch.inf)
    total = importance.sum(2).clamp_min(1e-30)
    mean = (grouped * importance).sum(2) / total
    for clip in CLIPS:
        for side in (0.0, 0.5, 1.0):
            # What is cut off lies on one side or on both.
            width = (high - low) * clip
            start = low + (high - low - width) * side
            step = _nonzero(width / spec.high)
            codes = spec.format.round_(grouped / step[:, :, None], (-start / step)[:, :, None])
            middle = (codes * importance).sum(2) / total
            spread = (codes.square() * importance).sum(2) - middle.square() * total
            slope = ((codes * grouped * importance).sum(2) - middle * mean * total) / spread.clamp_min(1e-30)
            slope = torch.where((spread > 1e-20) & (slope > 0), slope, step)
            offset = slope * middle - mean
            if positive:
                through = (codes * grouped * importance).sum(2) / (codes.square() * importance).sum(2).clamp_min(1e-30)
                slope, offset = torch.where(offset < 0, through, slope), offset.clamp_min(0)
            error = _summed(codes * slope[:, :, None] - offset[:, :, None] - grouped, blocks)
            better = error < least
            best, best_offset, least = (
                torch.where(better, slope, best),
                torch.where(better, offset, best_offset),
                torch.minimum(error, least),
            )
    return best, best_offset


def _nonzero(step: Tensor) -> Tensor:
    return torch.where(step == 0, 1.0, step)


def _by_block(error: Tensor, spec: WeightScheme) -> Tensor:
    """Errors of groups (out, groups) summed over those that share a scale."""
    groups = spec.groups_of_scale
    return torch.nn.functional.pad(error, (0, -error.shape[1] % groups)).reshape(len(error), -1, groups).sum(2)


def _where(found: Tensor, grid: WeightQParams, other: WeightQParams, spec: WeightScheme) -> WeightQParams:
    """Block by block the one or the other grid; ``found`` is bool (out, blocks)."""
    by_group = found.repeat_interleave(spec.groups_of_scale, 1)[:, : grid.step.shape[1]]

    def chosen(name: str, which: Tensor) -> Tensor | None:
        one, two = getattr(grid, name), getattr(other, name)
        return None if one is None or two is None else torch.where(which, one, two)

    scale = chosen("scale", found)
    assert scale is not None
    return WeightQParams(
        spec, scale, None, chosen("multiplier", by_group), None, chosen("offset", found), chosen("offset_multiplier", by_group)
    )
