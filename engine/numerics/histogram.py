"""A streaming histogram whose range grows by doubling its bins, so that merging is exact and memory is constant."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from engine.numerics.memory import as_it_lies

BINS = 2048
_PIECE = 2**17


class Histogram:
    """Counts in ``BINS`` bins of equal width that start at a multiple of the width.

    When a value falls outside, the width doubles and neighbours merge in pairs until it fits: no count is ever split.
    """

    def __init__(self) -> None:
        self.counts = torch.zeros(BINS, dtype=torch.float64)
        self.width = 0.0
        self.first = 0
        self.low, self.high = math.inf, -math.inf

    def update(self, x: Tensor) -> None:
        low, high = extremes(x)
        # NaN stays, so that it is seen at the end.
        self.low, self.high = (math.nan, math.nan) if math.isnan(low) else (min(self.low, low), max(self.high, high))
        if not (math.isfinite(self.low) and math.isfinite(self.high)):
            return
        self._cover()
        self.counts += self._count(as_it_lies(x.detach())).to("cpu", torch.float64)

    def _count(self, x: Tensor) -> Tensor:
        """(BINS,) counts of 1-d values that are all covered."""
        counts = torch.zeros(BINS, dtype=torch.int64, device=x.device)
        # In pieces that stay in the cache; the width is a power of two, so that no rounding moves a value to another bin.
        size = _PIECE if x.device.type == "cpu" else len(x)
        for start in range(0, len(x), size):
            counts += torch.bincount(
                x[start : start + size].float().mul(1 / self.width).floor_().sub_(self.first).to(torch.int16), minlength=BINS
            )
        return counts

    def _cover(self) -> None:
        if self.width == 0.0:
            # Far from zero the bins are no finer than float32 can tell their edges apart.
            spread = max(self.high - self.low, 2.0**-10 * max(-self.low, self.high), 1e-30)
            self.width = 2.0 ** math.ceil(math.log2(spread / (BINS // 2)))
            self.first = math.floor(self.low / self.width) - BINS // 8
        while not self._inside():
            self._double()

    def _inside(self) -> bool:
        return self.first * self.width <= self.low and self.high < (self.first + BINS) * self.width

    def _double(self) -> None:
        odd = self.first % 2
        lifted = torch.cat([torch.zeros(odd, dtype=torch.float64), self.counts, torch.zeros(odd, dtype=torch.float64)])
        merged = lifted.reshape(-1, 2).sum(1)
        first = (self.first - odd) // 2
        self.width *= 2
        # The free half goes to the side that the new value lies on.
        free = BINS - len(merged)
        left = free if self.low < first * self.width else 0
        self.counts = torch.cat([torch.zeros(left, dtype=torch.float64), merged, torch.zeros(free - left, dtype=torch.float64)])
        self.first = first - left

    def over(self, low: float, high: float, bins: int) -> tuple[int, ...]:
        """All counts, in ``bins`` bins of equal width from ``low`` to ``high``; all in the first where that is no range.

        A bin that an edge cuts is taken to be evenly filled; what lies outside goes to the outermost bins.
        """
        total = round(self.counts.sum().item())
        if not low < high or self.width == 0:
            return total, *[0] * (bins - 1)
        edges = low + torch.arange(bins + 1, dtype=torch.float64) * ((high - low) / bins)
        position = (edges / self.width - self.first).clamp_(0, BINS)
        index = position.long().clamp_max_(BINS - 1)
        below = (self.counts.cumsum(0) - self.counts)[index] + (position - index) * self.counts[index]
        # Rounding what lies below an edge, and not each bin, keeps the total.
        below[0], below[-1] = 0, total
        return tuple(int(count) for count in below.round_().diff().tolist())

    def centres(self) -> Tensor:
        """(BINS,) float64."""
        return (torch.arange(BINS, dtype=torch.float64) + self.first + 0.5) * self.width


def extremes(x: Tensor) -> tuple[float, float]:
    """The least and the greatest value; NaN for both where there is one. ``x`` is not empty."""
    low, high = torch.aminmax(as_it_lies(x))
    return low.item(), high.item()
