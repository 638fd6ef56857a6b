"""Intervals of metrics that are computed from sums over items: the bootstrap."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from engine.tasks.metrics import MetricValue

RESAMPLES, LEAST = 1000, 8


def resampled(items: Tensor, metric: Callable[[Tensor], Tensor], resamples: int = RESAMPLES) -> Tensor:
    """``metric`` of the sums over items drawn with replacement, (resamples,), by a fixed seed: the same draws for every model that is
    measured on the same items.

    ``items`` (N, K) are what each item adds to the sums; ``metric`` maps sums (R, K) to (R,).
    """
    count = len(items)
    draw = torch.Generator().manual_seed(0)
    places = torch.randint(count, (resamples, count), generator=draw)
    times = torch.zeros(resamples, count, dtype=torch.float64).scatter_add_(1, places, torch.ones(places.shape, dtype=torch.float64))
    return metric(times @ items.double())


def bootstrap(items: Tensor, metric: Callable[[Tensor], Tensor], resamples: int = RESAMPLES) -> MetricValue:
    """The metric of all items with its 95 % percentile interval (Efron 1979); without one for fewer than eight items.

    >>> right = torch.tensor([[1.0, 1.0]] * 9 + [[0.0, 1.0]])
    >>> round(bootstrap(right, lambda sums: sums[:, 0] / sums[:, 1]).value, 2)
    0.9
    """
    value = float(metric(items.double().sum(0, keepdim=True))[0])
    if len(items) < LEAST:
        return MetricValue(value)
    found = resampled(items, metric, resamples)
    found = found[torch.isfinite(found)]
    if not len(found):
        return MetricValue(value)
    low, high = torch.quantile(found, torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return MetricValue(value, low, high)


def paired_error(mine: Tensor, other: Tensor, metric: Callable[[Tensor], Tensor], resamples: int = RESAMPLES) -> float | None:
    """The standard error of the difference between two models on the same items, both resampled alike; None for fewer than eight."""
    if len(mine) < LEAST or mine.shape != other.shape:
        return None
    difference = resampled(mine, metric, resamples) - resampled(other, metric, resamples)
    return float(difference[torch.isfinite(difference)].std())
