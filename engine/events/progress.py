"""Progress of a loop, at a pace that a screen can follow."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator
from typing import Any, TypeVar

from engine.events.cancellation import StopToken
from engine.events.event import Event, Progress

T = TypeVar("T")


class Ticker:
    """Turns a loop into ``Progress`` events, at most one every ``interval`` seconds and always the last one.

    ``clock`` gives seconds; a run's own (``StopToken.clock``) leaves pauses out of rate and ETA.
    """

    def __init__(self, stage: str, total: int, unit: str, interval: float = 0.1, clock: Callable[[], float] = time.perf_counter) -> None:
        self.stage, self.total, self.unit, self.interval = stage, total, unit, interval
        self.done = self._skipped = 0
        self._clock = clock
        self._start = clock()
        self._last = -float("inf")

    def skip(self, by: int) -> None:
        """``by`` units were done before: they count as done, and not in the rate."""
        self.done += by
        self._skipped += by

    def advance(self, by: int = 1) -> Iterator[Progress]:
        self.done += by
        now = self._clock()
        if self.done < self.total and now - self._last < self.interval:
            return
        self._last = now
        rate = (self.done - self._skipped) / max(now - self._start, 1e-9)
        yield Progress(self.stage, self.done, self.total, self.unit, rate, max(self.total - self.done, 0) / rate)


class Every:
    """True at the first call and then at most once in ``interval`` seconds of ``clock``."""

    def __init__(self, interval: float, clock: Callable[[], float] = time.perf_counter) -> None:
        self._interval, self._clock, self._last = interval, clock, -float("inf")

    def __call__(self) -> bool:
        now = self._clock()
        due = now - self._last >= self._interval
        if due:
            self._last = now
        return due


def quietly(steps: Generator[Event, Any, T], stop: StopToken) -> T:
    """What ``steps`` return, their events unsaid. Raises Cancelled on stop."""
    while True:
        stop.check()
        try:
            next(steps)
        except StopIteration as end:
            found: T = end.value
            return found
