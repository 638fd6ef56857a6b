"""Streaming observers: each sees every calibration batch once, keeps a constant amount of state, and gives a range."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from engine.errors import EngineError
from engine.numerics.formats import round_to_
from engine.numerics.histogram import Histogram, extremes
from engine.recipe.spec import ActivationSpec


class RangeObserver(ABC):
    """``update`` takes a float tensor of any shape; ``range`` gives (low, high) for that many bits.

    ``histogram`` is None for an observer that counts nothing; ``quick`` says that ``range`` costs little beside a batch;
    ``batchwise`` that it matters which values come in one ``update``: it is to see all those of a batch. One that is a ``part`` sees
    some of the batches alone, each in its ``turn``, and ``merged`` puts several together.
    """

    histogram: Histogram | None = None
    turn: int = 0
    quick: ClassVar[bool] = True
    batchwise: ClassVar[bool] = False

    @abstractmethod
    def update(self, x: Tensor) -> None: ...

    @abstractmethod
    def range(self, bits: int) -> tuple[float, float]: ...

    @abstractmethod
    def merge(self, parts: Sequence[Any]) -> None:
        """Become, from fresh, what one observer of all batches would be that ``parts``, of the same class, saw."""

    def at(self, turn: int) -> None:
        """What comes next belongs to batch ``turn`` of all."""
        self.turn = turn
        if self.histogram is not None:
            self.histogram.turn = turn

    @property
    @abstractmethod
    def extremes(self) -> tuple[float, float]:
        """The least and the greatest value seen: infinity and minus infinity before any, NaN once there was one."""


class MinMax(RangeObserver):
    """The extremes of all that was seen."""

    def __init__(self, part: bool = False) -> None:
        self.low, self.high = math.inf, -math.inf

    def update(self, x: Tensor) -> None:
        self._take(*extremes(x))

    def _take(self, low: float, high: float) -> None:
        self.low, self.high = _min(self.low, low), _max(self.high, high)

    def merge(self, parts: Sequence[MinMax]) -> None:
        for part in parts:
            self._take(part.low, part.high)

    def range(self, bits: int) -> tuple[float, float]:
        return self.low, self.high

    @property
    def extremes(self) -> tuple[float, float]:
        return self.low, self.high


class MovingAverage(RangeObserver):
    """An exponential average of each batch's extremes (Jacob et al. 2018, arXiv:1712.05877, section 3.1)."""

    momentum = 0.1
    batchwise = True

    def __init__(self, part: bool = False) -> None:
        self.low, self.high = math.inf, -math.inf
        self.lowest, self.highest = math.inf, -math.inf
        self.fresh = True
        self._batches: list[tuple[int, float, float]] | None = [] if part else None

    def update(self, x: Tensor) -> None:
        low, high = extremes(x)
        if self._batches is not None:
            self._batches.append((self.turn, low, high))
        self._take(low, high)

    def merge(self, parts: Sequence[MovingAverage]) -> None:
        for _, low, high in sorted((one for part in parts for one in part._batches or ()), key=lambda one: one[0]):
            self._take(low, high)

    def _take(self, low: float, high: float) -> None:
        self.lowest, self.highest = _min(self.lowest, low), _max(self.highest, high)
        fresh, self.fresh = self.fresh, False
        self.low = low if fresh else self.low + self.momentum * (low - self.low)
        self.high = high if fresh else self.high + self.momentum * (high - self.high)

    def range(self, bits: int) -> tuple[float, float]:
        return self.low, self.high

    @property
    def extremes(self) -> tuple[float, float]:
        return self.lowest, self.highest


class _HistogramObserver(RangeObserver):
    histogram: Histogram

    def __init__(self, part: bool = False) -> None:
        self.histogram = Histogram(part)

    def update(self, x: Tensor) -> None:
        self.histogram.update(x)

    def merge(self, parts: Sequence[_HistogramObserver]) -> None:
        self.histogram = Histogram.merged([part.histogram for part in parts])

    def range(self, bits: int) -> tuple[float, float]:
        seen = self.histogram
        if not (math.isfinite(seen.low) and math.isfinite(seen.high)) or seen.high <= seen.low:
            return seen.low, seen.high
        return self._clip(bits)

    @property
    def extremes(self) -> tuple[float, float]:
        return self.histogram.low, self.histogram.high

    @abstractmethod
    def _clip(self, bits: int) -> tuple[float, float]: ...


class Percentile(_HistogramObserver):
    """Leaves out 0.01 % of the values at each end."""

    outside = 1e-4

    def _clip(self, bits: int) -> tuple[float, float]:
        seen = self.histogram
        below = seen.counts.cumsum(0) / seen.counts.sum()
        edges = (torch.arange(len(below) + 1, dtype=torch.float64) + seen.first) * seen.width
        low = edges[int((below <= self.outside).sum())].item()
        high = edges[int((below < 1 - self.outside).sum()) + 1].item()
        return max(low, seen.low), min(high, seen.high)


class HistogramMSE(_HistogramObserver):
    """The clip of least expected squared error (Nagel et al. 2021, arXiv:2106.08295, section 3.1).

    Both ends are searched in turn on a grid of fractions of the observed range.
    """

    quick = False

    def _clip(self, bits: int) -> tuple[float, float]:
        return _search(self.histogram, lambda lows, highs: _squared_error(self.histogram, lows, highs, bits))


class Entropy(_HistogramObserver):
    """The clip of least Kullback-Leibler divergence between the values and their quantized form (Migacz 2017, "8-bit
    inference with TensorRT"), both ends searched."""

    quick = False

    def _clip(self, bits: int) -> tuple[float, float]:
        return _search(self.histogram, lambda lows, highs: _divergence(self.histogram, lows, highs, bits))


_OBSERVERS: dict[str, Callable[[bool], RangeObserver]] = {
    "minmax": MinMax,
    "moving-average": MovingAverage,
    "percentile": Percentile,
    "histogram-mse": HistogramMSE,
    "entropy": Entropy,
}


def observer(spec: ActivationSpec, part: bool = False) -> RangeObserver:
    """A fresh observer of the kind that ``spec`` names; a ``part`` of several that each see some of the batches."""
    return _OBSERVERS[spec.observer](part)


def merged(spec: ActivationSpec, parts: Sequence[RangeObserver]) -> RangeObserver:
    """What one observer of ``spec`` would be that saw the batches of all ``parts``, bit for bit."""
    whole = observer(spec)
    whole.merge(parts)
    return whole


def settled(observer: RangeObserver, bits: int, what: str) -> tuple[float, float]:
    """The observed range. Raises EngineError, naming ``what``, when nothing finite was seen."""
    low, high = observer.range(bits)
    if not (math.isfinite(low) and math.isfinite(high)):
        raise EngineError(f"calibration saw NaN or infinity (or nothing) at {what}: check the weights, data.mean and data.std")
    return low, high


def _search(seen: Histogram, cost: Callable[[Tensor, Tensor], Tensor]) -> tuple[float, float]:
    """Coordinate descent over the two ends of the clip; an end at zero stays there."""
    fractions = torch.linspace(0.2, 1.0, 81, dtype=torch.float64)
    low, high = min(seen.low, 0.0), max(seen.high, 0.0)
    lows, highs = fractions * low, fractions * high
    for _ in range(2):
        if seen.high > 0:
            high = highs[int(cost(torch.full_like(highs, low), highs).argmin())].item()
        if seen.low < 0:
            low = lows[int(cost(lows, torch.full_like(lows, high)).argmin())].item()
    return low, high


def _squared_error(seen: Histogram, lows: Tensor, highs: Tensor, bits: int) -> Tensor:
    """(candidates,) expected squared error of quantizing the histogram's mass."""
    used = seen.counts.nonzero().squeeze(1)
    x, mass = seen.centres()[used], seen.counts[used]
    step = ((highs - lows) / (2**bits - 1)).clamp_min(1e-300)[:, None]
    zero = (-lows[:, None] / step).round()
    back = round_to_(x / step, 0, 2**bits - 1, zero).sub_(zero).mul_(step)
    # A bin holds its values spread out: where it is wider than the step, its mass does not sit at the centre.
    error: Tensor = (back - x).square_() @ mass
    return error


def _divergence(seen: Histogram, lows: Tensor, highs: Tensor, bits: int) -> Tensor:
    centres, mass = seen.centres(), seen.counts.clone()
    # Zero is exact on every grid; the spike that relu leaves there would hide the rest of the distribution.
    mass[(centres.abs() <= seen.width / 2)] = 0
    mass /= mass.sum().clamp_min(1)
    return torch.stack([_divergence_of(centres, mass, low, high, bits) for low, high in zip(lows, highs, strict=True)])


def _divergence_of(x: Tensor, mass: Tensor, low: Tensor, high: Tensor, bits: int) -> Tensor:
    inside = (x >= low) & (x <= high)
    if not inside.any():
        return torch.tensor(math.inf, dtype=torch.float64)
    reference = mass[inside].clone()
    reference[0] += mass[x < low].sum()
    reference[-1] += mass[x > high].sum()
    levels = 2**bits
    level = ((x[inside] - low) / ((high - low) / levels).clamp_min(1e-300)).long().clamp_(0, levels - 1)
    held = mass[inside]
    occupied = (held > 0).to(torch.float64)
    sums = torch.zeros(levels, dtype=torch.float64).index_add_(0, level, held)
    counts = torch.zeros(levels, dtype=torch.float64).index_add_(0, level, occupied)
    # Each level spreads its mass evenly over the bins that held any.
    quantized = (sums / counts.clamp_min(1))[level] * occupied
    quantized = quantized / quantized.sum().clamp_min(1e-300)
    live = reference > 0
    return (reference[live] * (reference[live] / quantized[live].clamp_min(1e-12)).log()).sum()


def _min(a: float, b: float) -> float:
    """NaN wins, so that it is seen at the end."""
    return b if math.isnan(b) else min(a, b)


def _max(a: float, b: float) -> float:
    return b if math.isnan(b) else max(a, b)
