"""Activation ranges in plain numbers, as they are while calibration goes on."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Mapping

from engine.events.event import Bins, RangeRow
from engine.lowering.graph.layout import Layout
from engine.lowering.graph.observe import Observed
from engine.numerics.qparams import QParams, affine

BINS = 64
Ends = tuple[float, float]


class Watch:
    """Looks at an ``Observed`` graph (one that counts) after each batch.

    An observer whose range is costly shows the clip of an earlier look, the extremes at first.
    """

    def __init__(self, observed: Observed, layout: Layout) -> None:
        self.seen = 0
        self._observed, self._classes = observed, layout.classes
        self._specs = {c.name: c.spec for c in layout.classes}
        self._clips: dict[str, Ends] = {}
        self._costly = deque(name for name, observer in observed.observers.items() if not observer.quick)
        # The range that is held against later ones, and the images that were seen when it came.
        self._held: dict[str, tuple[Ends, int]] = {}

    def batch(self, images: int) -> None:
        """Note which ranges the last ``images`` have moved: the clip, or the extremes where the clip is costly."""
        self.seen += images
        for c in self._classes:
            observer = self._observed.observers[c.name]
            now = observer.range(c.spec.bits) if observer.quick else observer.extremes
            if c.name not in self._held or _moved(self._held[c.name][0], now):
                self._held[c.name] = now, self.seen

    def look(self, seconds: float) -> tuple[RangeRow, ...]:
        """A row for each class that has seen finite values alone; costly clips are renewed in turn for about ``seconds``, at
        least one of them."""
        end = time.perf_counter() + seconds
        for count in range(len(self._costly)):
            if count and time.perf_counter() >= end:
                break
            self._clips[self._costly[0]] = self._clip(self._costly[0])
            self._costly.rotate(-1)
        clips = {}
        for c in self._classes:
            quick = self._observed.observers[c.name].quick
            clips[c.name] = self._clip(c.name) if quick else self._clips.get(c.name, self._extremes(c.name))
        return self._rows(clips)

    def last(self, grids: Mapping[str, QParams]) -> tuple[RangeRow, ...]:
        """A row for each class, with the ends of the grid that it got."""
        return self._rows({name: ends(grid) for name, grid in grids.items()})

    def _rows(self, clips: Mapping[str, Ends]) -> tuple[RangeRow, ...]:
        rows = []
        for c in self._classes:
            low, high = self._extremes(c.name)
            clip_low, clip_high = clips[c.name]
            if not all(map(math.isfinite, (low, high, clip_low, clip_high))):
                continue
            counts = self._observed.histogram(c.name).over(low, high, BINS)
            moved = self._held[c.name][1]
            rows.append(RangeRow(
                c.name, tuple(dict.fromkeys(c.layers)), low, high, clip_low, clip_high,
                # A value that is always the same has no range: any width shows it.
                Bins(low, (high - low) / BINS or 1.0, counts), moved if 3 * moved <= 2 * self.seen else None,
            ))  # fmt: skip
        return tuple(rows)

    def _extremes(self, name: str) -> Ends:
        return self._observed.observers[name].extremes

    def _clip(self, name: str) -> Ends:
        """The ends of the grid that calibration would give if it ended now; not finite where there is none."""
        spec = self._specs[name]
        low, high = self._observed.observers[name].range(spec.bits)
        finite = math.isfinite(low) and math.isfinite(high)
        return ends(affine(low, high, spec.bits, spec.symmetric)) if finite else (low, high)


def ends(grid: QParams) -> Ends:
    """The least and the greatest value that a grid can hold."""
    return -grid.zero_point * grid.scale, (grid.qmax - grid.zero_point) * grid.scale


def _moved(before: Ends, now: Ends) -> bool:
    """By more than a hundredth of its width."""
    return max(abs(now[0] - before[0]), abs(now[1] - before[1])) > 0.01 * (now[1] - now[0])
