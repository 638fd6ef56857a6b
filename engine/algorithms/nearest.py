"""Rounding to nearest."""

from __future__ import annotations

from torch import Tensor

from engine.numerics.qtensor import QTensor
from engine.numerics.weights import WeightQParams, quantize


def nearest(weight: Tensor, grid: WeightQParams, second: Tensor | None = None) -> tuple[QTensor, None]:
    """``weight`` (out, in) at the nearest values of ``grid``; the inputs' second moments are not looked at."""
    return quantize(weight, grid), None
