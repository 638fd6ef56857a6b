"""The matrices of a decoder before they are rounded: ranges and histograms, for a person to see."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from engine.events.event import Bins, LayerRow, WeightRow
from engine.lowering.graph.ranges import BINS
from engine.models.anatomy import weight_of
from engine.numerics.scheme import scheme_of
from engine.numerics.weights import minmax


@torch.no_grad()
def weight_rows(model: Any, layers: Sequence[LayerRow]) -> tuple[WeightRow, ...]:
    """A row for each matrix that becomes integers, with the ends of its widest grid by extremes; tied ones are where they are
    first."""
    return tuple(_row(model, row) for row in layers if row.actual.weights is not None and row.tied is None)


def _row(model: Any, row: LayerRow) -> WeightRow:
    assert row.actual.weights is not None
    weight = weight_of(model.get_submodule(row.path)).float()
    spec = scheme_of(row.actual.weights)
    low, high = (end.item() for end in weight.aminmax())
    grid = minmax(weight, spec)
    step = grid.step
    if grid.zero is None:
        least, greatest = spec.low * step.max().item(), spec.high * step.max().item()
    else:
        zero = grid.zero.float()
        least, greatest = (-zero * step).min().item(), ((spec.high - zero) * step).max().item()
    ranges = weight.abs().amax(1)
    counts = torch.histc(weight, BINS, low, high).tolist() if low < high else [weight.numel(), *[0] * (BINS - 1)]
    bins = Bins(low, (high - low) / BINS or 1.0, tuple(map(int, counts)))
    return WeightRow(row.path, low, high, least, greatest, ranges.min().item(), ranges.max().item(), len(weight), bins)
