"""Rounding to nearest."""

from __future__ import annotations

from torch import Tensor

from engine.numerics.grouped import Grid, GroupedWeight, quantize


def nearest(weight: Tensor, grid: Grid, second: Tensor | None = None) -> tuple[GroupedWeight, None]:
    """``weight`` (out, in) at the nearest values of ``grid``; the inputs' second moments are not looked at."""
    return quantize(weight, grid), None
