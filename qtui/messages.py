"""What the app says to its own state, beside the engine's events."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from engine.events.event import Event

if TYPE_CHECKING:
    from engine.runs.rundir import RunSummary
    from qtui.draft import Draft

JobKind = Literal["examine", "run", "resume", "train", "export", "open"]


@dataclass(frozen=True)
class Message(Event):
    """Base of the app's own messages."""


@dataclass(frozen=True)
class JobStarted(Message):
    """``model`` and ``data`` are what the job is about, as far as it is known before it runs."""

    kind: JobKind
    title: str
    model: str = ""
    data: str = ""


@dataclass(frozen=True)
class JobEnded(Message):
    kind: JobKind
    outcome: Literal["done", "stopped", "failed"]


@dataclass(frozen=True)
class Examined(Message):
    """What ``engine.runs.examine`` found: the machine as plain values."""

    found: dict[str, Any]


@dataclass(frozen=True)
class Problem(Message):
    """A job failed: what happened, what to try, and where the traceback is, if there is one."""

    what: str
    next_step: str = ""
    traceback: str = ""


@dataclass(frozen=True)
class Dismissed(Message):
    """The panel of a problem was read."""


@dataclass(frozen=True)
class RunsListed(Message):
    runs: tuple[RunSummary, ...]


@dataclass(frozen=True)
class Opened(Message):
    """A run's folder is shown from its files; its events follow."""

    directory: Path


@dataclass(frozen=True)
class ReportLoaded(Message):
    report: dict[str, Any]


@dataclass(frozen=True)
class Answered(Message):
    """A person's decision went to the engine; ``trains`` is whether it was one to train."""

    key: str
    trains: bool = False


@dataclass(frozen=True)
class Asking(Message):
    """The job waits for a decision."""

    key: str
    default: bool


@dataclass(frozen=True)
class Stopping(Message):
    """``keep`` ends training with the best epoch; otherwise the run stops and can be resumed."""

    keep: bool = False


@dataclass(frozen=True)
class Paused(Message):
    paused: bool


@dataclass(frozen=True)
class Edited(Message):
    draft: Draft


@dataclass(frozen=True)
class Trained(Message):
    """A baseline was trained; its weights file."""

    weights: str
