"""A streaming histogram whose range grows by doubling its bins, so that merging is exact and memory is constant."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from engine.numerics.memory import as_it_lies

BINS = 2048
# Of one that sees a part of the values, and is to be merged: it is then never coarser than one of all of them. Its window is ``BINS *
# _FINER`` bins; as it first spans the range R of its values it spans less than 2 R, it doubles at most once more to each side, and
# what spans less than 8 R has bins of less than R / ``BINS``, which is the least that one of all values has.
_FINER = 8
_PIECE = 2**17


class Histogram:
    """Counts in ``BINS`` bins of equal width that start at a multiple of the width.

    When a value falls outside, the width doubles and neighbours merge in pairs until it fits: no count is ever split. With ``part``
    it sees some of the batches alone, ``turn`` being the number of the one at hand, and ``merged`` puts several together.
    """

    def __init__(self, part: bool = False) -> None:
        self.counts = torch.zeros(BINS * _FINER if part else BINS, dtype=torch.float64)
        self.turn = 0
        # What has widened the range, and in which turn.
        self._moves: list[tuple[int, float, float]] | None = [] if part else None
        self.width = 0.0
        self.first = 0
        self.low, self.high = math.inf, -math.inf

    def update(self, x: Tensor) -> None:
        if self._widen(*extremes(x)):
            self.counts += self._count(as_it_lies(x.detach())).to("cpu", torch.float64)

    def _widen(self, low: float, high: float) -> bool:
        """Cover values from ``low`` to ``high``; whether they can be counted."""
        if self._moves is not None and not (self.low <= low and high <= self.high):
            self._moves.append((self.turn, low, high))
        # NaN stays, so that it is seen at the end.
        self.low, self.high = (math.nan, math.nan) if math.isnan(low) else (min(self.low, low), max(self.high, high))
        if not (math.isfinite(self.low) and math.isfinite(self.high)):
            return False
        self._cover()
        return True

    @staticmethod
    def merged(parts: Sequence[Histogram]) -> Histogram:
        """What one histogram of all batches would be, in the order of their turns, of ``parts`` that saw each of them once."""
        whole = Histogram()
        moves = sorted((move for part in parts for move in part._moves or ()), key=lambda move: move[0])
        for _, low, high in moves:
            whole._widen(low, high)
        for part in parts:
            if part.width == 0.0 or whole.width == 0.0:
                continue
            while part.width < whole.width:
                part._double()
            used = part.counts.nonzero().squeeze(1)
            whole.counts.index_add_(0, used + (part.first - whole.first), part.counts[used])
        return whole

    def _count(self, x: Tensor) -> Tensor:
        """(bins,) counts of 1-d values that are all covered."""
        counts = torch.zeros(len(self.counts), dtype=torch.int64, device=x.device)
        # In pieces that stay in the cache; the width is a power of two, so that no rounding moves a value to another bin.
        size = _PIECE if x.device.type == "cpu" else len(x)
        for start in range(0, len(x), size):
            counts += torch.bincount(
                x[start : start + size].float().mul(1 / self.width).floor_().sub_(self.first).to(torch.int16), minlength=len(self.counts)
            )
        return counts

    def _cover(self) -> None:
        bins = len(self.counts)
        if self.width == 0.0:
            # Far from zero the bins are no finer than float32 can tell their edges apart.
            spread = max(self.high - self.low, 2.0**-10 * max(-self.low, self.high), 1e-30)
            self.width = 2.0 ** math.ceil(math.log2(spread / (bins // 2)))
            self.first = math.floor(self.low / self.width) - bins // 8
        while not self._inside():
            self._double()

    def _inside(self) -> bool:
        return self.first * self.width <= self.low and self.high < (self.first + len(self.counts)) * self.width

    def _double(self) -> None:
        odd = self.first % 2
        lifted = torch.cat([torch.zeros(odd, dtype=torch.float64), self.counts, torch.zeros(odd, dtype=torch.float64)])
        merged = lifted.reshape(-1, 2).sum(1)
        first = (self.first - odd) // 2
        self.width *= 2
        # The free half goes to the side that the new value lies on.
        free = len(self.counts) - len(merged)
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
        position = (edges / self.width - self.first).clamp_(0, len(self.counts))
        index = position.long().clamp_max_(len(self.counts) - 1)
        below = (self.counts.cumsum(0) - self.counts)[index] + (position - index) * self.counts[index]
        # Rounding what lies below an edge, and not each bin, keeps the total.
        below[0], below[-1] = 0, total
        return tuple(int(count) for count in below.round_().diff().tolist())

    def centres(self) -> Tensor:
        """(bins,) float64."""
        return (torch.arange(len(self.counts), dtype=torch.float64) + self.first + 0.5) * self.width


def extremes(x: Tensor) -> tuple[float, float]:
    """The least and the greatest value; NaN for both where there is one. ``x`` is not empty."""
    low, high = torch.aminmax(as_it_lies(x))
    return low.item(), high.item()
