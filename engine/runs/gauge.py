"""What a run takes of its machines while it works: an event every few seconds, and the peaks for the report."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import Any

from engine.events.event import Ask, MachineUse
from engine.events.progress import Every
from engine.machine import ranks
from engine.machine.ranks.place import host
from engine.machine.usage import Meter, Usage
from engine.recipe.decisions import Answer
from engine.runs.work import Run, T

SECONDS = 3.0
_FIELDS = {field.name for field in fields(Usage)}


class Gauge:
    """One run's, by ``clock``, which stands still in a pause."""

    def __init__(self, clock: Callable[[], float], interval: float = SECONDS) -> None:
        self._meter, self._clock = Meter(host=host()), clock
        self._due, self._begun = Every(interval, clock), clock()
        # The first is due after the first interval.
        self._due()
        self._peaks: dict[int, Usage] = {}
        self._busy: dict[int, list[float]] = {}

    @property
    def due(self) -> bool:
        return self._due()

    def look(self) -> MachineUse:
        """All ranks as they were last heard of."""
        others = [Usage(**{key: value for key, value in one.items() if key in _FIELDS}) for one in ranks.heard()]
        found = tuple(sorted((self._meter.look(), *others), key=lambda one: one.rank))
        for one in found:
            self._peaks[one.rank] = max(one, self._peaks.get(one.rank, one), key=lambda use: use.peak_bytes)
            self._busy.setdefault(one.rank, []).append(one.cpu)
        return MachineUse(round(self._clock() - self._begun, 1), found)

    def entries(self) -> list[dict[str, Any]]:
        """The report's ``resources``, a mapping for each rank."""
        now = {one.rank: one for one in self.look().ranks}
        found = []
        for rank, peak in sorted(self._peaks.items()):
            busy, last = self._busy[rank], now.get(rank, peak)
            found.append({
                "rank": rank, "host": peak.host, "peak_memory_bytes": peak.peak_bytes, "cores": peak.cores,
                "mean_busy_cores": round(sum(busy) / len(busy), 2), "written_bytes": last.written_bytes,
                "gpu_memory_bytes": peak.gpu_memory_bytes,
            })  # fmt: skip
        return found


def gauged(steps: Run[T], gauge: Gauge) -> Run[T]:
    """Pass events on and answers back; between them, every few seconds, what the machines are used for. Nothing while nothing is said."""
    answer: Answer = None
    while True:
        try:
            event = steps.send(answer)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]
        try:
            answer = yield event
            if not isinstance(event, Ask) and gauge.due:
                yield gauge.look()
        except BaseException as error:
            steps.throw(error)
            raise
