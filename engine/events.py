"""What a run says while it works: frozen, tensor-free values that travel to any front end and into ``events.jsonl``."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, Literal


@dataclass(frozen=True)
class Event:
    """Base of all events. ``to_dict`` gives the JSON form with the class name under ``event``."""

    def to_dict(self) -> dict[str, Any]:
        return {"event": type(self).__name__, **asdict(self)}


@dataclass(frozen=True)
class StageStarted(Event):
    stage: str
    title: str


@dataclass(frozen=True)
class StageFinished(Event):
    stage: str
    seconds: float


@dataclass(frozen=True)
class Progress(Event):
    """``rate`` is in units per second, ``eta`` in seconds; both are None until they can be told."""

    stage: str
    done: int
    total: int
    unit: str
    rate: float | None = None
    eta: float | None = None


@dataclass(frozen=True)
class Notice(Event):
    text: str
    level: Literal["info", "warning"] = "info"


@dataclass(frozen=True)
class Table(Event):
    """Rows for a person to read. ``key`` names the table for a program: ``graph-before``, ``plan``, ``layers`` …"""

    key: str
    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Ask(Event):
    """A decision between stages. The consumer answers with ``generator.send(bool)``; None takes the default."""

    key: Literal["trace", "analyze", "optimize", "quantize", "qat"]
    question: str
    default: bool = True


@dataclass(frozen=True)
class EpochFinished(Event):
    """``loss`` is the mean training loss of the epoch, ``value`` the metric on the validation split."""

    epoch: int
    epochs: int
    loss: float
    value: float
    lr: float
    best: bool
    stage: str = "train"


@dataclass(frozen=True)
class Measured(Event):
    """The figures of one form of the model: ``which`` is ``baseline``, ``ptq`` or ``qat``."""

    which: Literal["baseline", "ptq", "qat"]
    figures: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Finished(Event):
    directory: str
    met: bool
    text: str


@dataclass(frozen=True)
class Stopped(Event):
    directory: str
    stage: str


@dataclass(frozen=True)
class Failed(Event):
    text: str
    traceback: str | None = None


class Ticker:
    """Turns a loop into ``Progress`` events, at most one every ``interval`` seconds and always the last one."""

    def __init__(self, stage: str, total: int, unit: str, interval: float = 0.1) -> None:
        self.stage, self.total, self.unit, self.interval = stage, total, unit, interval
        self.done = 0
        self._start = time.perf_counter()
        self._last = -float("inf")

    def advance(self, by: int = 1) -> Iterator[Progress]:
        self.done += by
        now = time.perf_counter()
        if self.done < self.total and now - self._last < self.interval:
            return
        self._last = now
        rate = self.done / max(now - self._start, 1e-9)
        yield Progress(self.stage, self.done, self.total, self.unit, rate, max(self.total - self.done, 0) / rate)
