"""Intervals of metrics that are computed from sums over items: the bootstrap."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from engine.tasks.metrics import MetricValue

RESAMPLES, LEAST = 1000, 8


def draws(count: int, resamples: int = RESAMPLES) -> Tensor:
    """How often each of ``count`` items is drawn, with replacement and by a fixed seed, in each resample: float64 (resamples, count)."""
    draw = torch.Generator().manual_seed(0)
    places = torch.randint(count, (resamples, count), generator=draw)
    return torch.zeros(resamples, count, dtype=torch.float64).scatter_add_(1, places, torch.ones(places.shape, dtype=torch.float64))


def resampled(items: Tensor, metric: Callable[[Tensor], Tensor], resamples: int = RESAMPLES) -> Tensor:
    """``metric`` of the sums over items drawn with replacement, (resamples,), by a fixed seed: the same draws for every model that is
    measured on the same items.

    ``items`` (N, K) are what each item adds to the sums; ``metric`` maps sums (R, K) to (R,).
    """
    return metric(draws(len(items), resamples) @ items.double())


def bootstrap(items: Tensor, metric: Callable[[Tensor], Tensor], resamples: int = RESAMPLES) -> MetricValue:
    """The metric of all items with its 95 % percentile interval (Efron 1979); without one for fewer than eight items.

    >>> right = torch.tensor([[1.0, 1.0]] * 9 + [[0.0, 1.0]])
    >>> round(bootstrap(right, lambda sums: sums[:, 0] / sums[:, 1]).value, 2)
    0.9
    """
    value = float(metric(items.double().sum(0, keepdim=True))[0])
    return MetricValue(value) if len(items) < LEAST else between(value, resampled(items, metric, resamples))


def between(value: float, found: Tensor) -> MetricValue:
    """``value`` with the 95 % percentile interval of what resamples have ``found``, (R,)."""
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
