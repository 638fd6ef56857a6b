"""A method of one's own: each weight's grid reaches to three times the mean magnitude of its row."""

from __future__ import annotations

from torch import Tensor

from engine.numerics.scheme import WeightScheme, in_groups
from engine.numerics.weights import WeightQParams, qparams_between


def three_means(weight: Tensor, scheme: WeightScheme, second: Tensor | None = None) -> WeightQParams:
    """The grid of ``weight`` (out, in), symmetric or affine as ``scheme`` asks."""
    reach = 3 * in_groups(weight.float(), scheme).abs().mean(2)
    return qparams_between(-reach, reach, scheme)
