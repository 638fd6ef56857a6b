"""The run directory: what a run leaves behind, each file whole, and the list of runs.

``events.jsonl`` is appended as events happen; ``state.json`` says how far the run came; everything else is written
atomically.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TextIO, get_args

from engine.errors import EngineError, UsageError, nearest
from engine.events.event import Event, Failed, Progress, Ranges
from engine.events.pictures import NAME as CHANGED
from engine.export.registry import FORMATS
from engine.paths import save, unwritable
from engine.plain_text import one_line
from engine.reading import MB, read_json, regular
from engine.report.report import finite
from engine.report.schema import STATE, misfit

if TYPE_CHECKING:
    from engine.lowering.base import Content

# What stages found, for a run that goes on; gone once it is finished.
CALIBRATION, MEASURED = "calibration.pt", "measured.json"
_EXPORTS = tuple(dict.fromkeys(name for entry in FORMATS.values() for name in entry.files))
_FILES = (
    "state.json",
    "events.jsonl",
    "recipe.yaml",
    "report.json",
    "report.md",
    CHANGED,
    *_EXPORTS,
    "checkpoints",
    "traceback.txt",
    "sensitivity.json",
    "search.json",
    CALIBRATION,
    MEASURED,
)

# Characters of a folder's name behind its time: systems take 255.
_LONGEST = 120

# What only a run writes, beside its ``state.json``.
_OF_A_RUN = ("events.jsonl", "recipe.yaml", "report.json")
_LARGEST_STATE = 1 * MB

State = Literal["running", "finished", "cancelled", "failed", "damaged"]


@dataclass(frozen=True)
class RunSummary:
    """``baseline`` and ``value`` are of ``metric``, which ``measure`` says how to show; runs of earlier versions name none."""

    directory: Path
    started: str
    model: str
    data: str
    state: State
    chosen: str | None
    baseline: float | None
    value: float | None
    text: str
    metric: str | None = None
    measure: dict[str, Any] | None = None


class RunDir:
    """One run's folder. A failure takes away again what this run made, and puts back what it set aside."""

    def __init__(self, path: Path, model: str, data: str, need_bytes: int, resumed: bool = False) -> None:
        self.path = path
        self.resumed = resumed
        self.finished = False
        self.written: list[str] = []
        self._made: list[Path] = []
        self._aside: Path | None = None
        self._events: TextIO | None = None
        self._about = {"started": time.strftime("%Y-%m-%dT%H:%M:%S"), "model": model, "data": data}
        try:
            self._made = [place for place in (path, *path.parents) if not place.exists()]
            path.mkdir(parents=True, exist_ok=True)
            free = shutil.disk_usage(path).free
            if free < need_bytes:
                raise EngineError(
                    f"{path} has {free / 1e6:.1f} MB free and a run needs about {need_bytes / 1e6:.1f} MB: give --out on another disk"
                )
            if not resumed:
                self._set_aside()
            self.state("running")
            if resumed and os.path.lexists(path / "events.jsonl"):
                regular(path / "events.jsonl")
            self._events = (path / "events.jsonl").open("a" if resumed else "w", encoding="utf-8")
            self.written.append("events.jsonl")
        except (OSError, EngineError) as error:
            self._take_back()
            if isinstance(error, EngineError):
                raise
            raise EngineError(f"{path} cannot be written ({error.strerror or error}): give --out with a folder that can") from error

    def _set_aside(self) -> None:
        """What an earlier run left in the same folder, and other files of these names, move to ``previous/``."""
        found = [name for name in _FILES if (self.path / name).exists()]
        if not found:
            return
        earlier = _summary(self.path)
        if earlier is not None and earlier.state == "running":
            raise EngineError(f"{self.path} holds a run that is still going: give another --out")
        taken = [int(place.name) for place in self.path.glob("previous/*") if place.name.isdecimal()]
        aside = self.path / "previous" / str(max(taken, default=0) + 1)
        aside.mkdir(parents=True)
        self._aside = aside
        for name in found:
            (self.path / name).rename(aside / name)

    def _take_back(self) -> None:
        """Undo what this run did to its folder."""
        self.close()
        with contextlib.suppress(OSError, EngineError):
            if self.resumed:
                if "state.json" in self.written:
                    self.state("failed", "it could not be resumed")
                return
            if self.path in self._made:
                shutil.rmtree(self.path, ignore_errors=True)
            for place in self._made[1:]:
                place.rmdir()
        if self.path in self._made:
            return
        with contextlib.suppress(OSError):
            for name in self.written:
                (self.path / name).unlink(missing_ok=True)
            with contextlib.suppress(OSError):
                (self.path / "checkpoints").rmdir()
            for place in list(self._aside.iterdir()) if self._aside else ():
                place.rename(self.path / place.name)
            if self._aside:
                self._aside.rmdir()
                self._aside.parent.rmdir()

    def event(self, event: Event) -> None:
        """Raises EngineError, as all that writes here."""
        # These tick while a stage works, and tell nothing that the events at its end do not.
        ticks = isinstance(event, Progress) or (isinstance(event, Ranges) and not event.final)
        if ticks or self._events is None:
            return
        try:
            self._events.write(json.dumps(finite(event.to_dict()), allow_nan=False) + "\n")
            self._events.flush()
        except OSError as error:
            raise unwritable(self.path / "events.jsonl", error) from error

    def write(self, name: str, content: bytes | str) -> Path:
        """Raises EngineError when the disk is full or the folder has become read-only."""
        path = self.path / name
        save(path, content.encode() if isinstance(content, str) else content)
        self.written.append(name)
        return path

    def keep(self, name: str, content: bytes | Content) -> None:
        """A model's file, or several. Raises EngineError as ``write`` does."""
        if isinstance(content, bytes):
            self.write(name, content)
        else:
            self.expect(content.write(self.path))

    def expect(self, names: Iterable[str]) -> None:
        """Files that something else writes here for this run."""
        self.written += names

    def state(self, state: State, text: str = "", **more: Any) -> None:
        about = {**self._about, "state": state, "text": text, "pid": os.getpid(), **more}
        self.write("state.json", json.dumps(finite(about), allow_nan=False) + "\n")
        self.finished = state == "finished"

    def close(self) -> None:
        # After a failed write the rest of the buffer fails again.
        with contextlib.suppress(OSError):
            if self._events is not None:
                self._events.close()

    def fail(self, text: str, trace: str | None = None) -> Path:
        """Record a failure. With a traceback, or once training has saved something, the folder stays; otherwise it goes.

        Returns where the traceback is, or the folder.
        """
        if trace is None and not self.resumed and not any(self.path.glob("checkpoints/*")):
            self._take_back()
            return self.path
        with contextlib.suppress(OSError, EngineError):
            self.state("failed", text)
            self.event(Failed(text, trace))
            return self.write("traceback.txt", trace) if trace else self.path
        return self.path


class Elsewhere(RunDir):
    """The folder of a run as a rank that does not own it has it: it may be read where the hosts share it, and nothing is written."""

    def __init__(self, path: Path, resumed: bool = False) -> None:
        self.path, self.resumed, self.finished = path, resumed, False
        self.written: list[str] = []

    def event(self, event: Event) -> None:
        pass

    def write(self, name: str, content: bytes | str) -> Path:
        return self.path / name

    def expect(self, names: Iterable[str]) -> None:
        pass

    def state(self, state: State, text: str = "", **more: Any) -> None:
        self.finished = state == "finished"

    def close(self) -> None:
        pass

    def fail(self, text: str, trace: str | None = None) -> Path:
        return self.path


def runs_root() -> Path:
    """``QTUI_RUNS``, or ``runs`` in the working directory."""
    return Path(os.environ.get("QTUI_RUNS") or "runs")


def new_directory(model: str, data: str) -> Path:
    """A folder below ``runs_root()`` that is not there, named by time, model and data: of a folder by its own name alone."""
    stamp = time.strftime("%Y%m%d-%H%M%S")
    name = model.rpartition(":")[2]
    name = Path(name).expanduser().resolve().name if Path(name).expanduser().is_dir() else name
    stem = "".join(c if c.isalnum() or c in "-_" else "-" for c in f"{name}-{Path(data).name}")[:_LONGEST]
    base = runs_root() / f"{stamp}-{stem}"
    path, n = base, 2
    while path.exists():
        path, n = base.with_name(f"{base.name}-{n}"), n + 1
    return path


def list_runs(root: Path) -> list[RunSummary]:
    """The runs below ``root``, newest first; what is not a run is passed over, and one whose ``state.json`` cannot be read is
    ``damaged``, with the reason as its text."""
    if not root.is_dir():
        return []
    found = [_listed(path) for path in root.iterdir() if os.path.lexists(path / "state.json")]
    return sorted((run for run in found if run), key=lambda run: (run.started, run.directory.name), reverse=True)


def _listed(directory: Path) -> RunSummary | None:
    try:
        return _read(directory)
    except (OSError, ValueError) as error:
        # Other programs have files of that name too: what else a run writes tells that this was one.
        if not any((directory / name).is_file() for name in _OF_A_RUN):
            return None
        reason = f"state.json cannot be read ({one_line(getattr(error, 'strerror', None) or error, 120)})"
        try:
            moment = time.localtime(directory.stat().st_mtime)
        except (OSError, ValueError, OverflowError):
            moment = time.localtime(0)
        return RunSummary(directory, time.strftime("%Y-%m-%dT%H:%M:%S", moment), "?", "?", "damaged", None, None, None, reason)


def _summary(directory: Path) -> RunSummary | None:
    try:
        return _read(directory)
    except (OSError, ValueError):
        return None


def _read(directory: Path) -> RunSummary:
    """What ``state.json`` says. Raises OSError or ValueError for one that cannot be read or is not of a run."""
    about = read_json(directory / "state.json", _LARGEST_STATE)
    if not isinstance(about, dict):
        raise ValueError("it is not a mapping")
    needed = ("state", "started", "model", "data")
    absent = [key for key in needed if about.get(key) is None]
    if damage := f"{absent[0]} is missing" if absent else misfit(about, STATE):
        raise ValueError(damage)
    state: State = about["state"]
    if state not in get_args(State) or state == "damaged":
        raise ValueError("state is none of a run's")
    if state == "running":
        if about.get("pid") is None:
            raise ValueError("pid is missing")
        state = "running" if _alive(about["pid"]) else "failed"
    return RunSummary(
        directory, about["started"], about["model"], about["data"], state,
        about.get("chosen"), about.get("baseline"), about.get("value"), about.get("text") or "",
        about.get("metric"), about.get("measure"),
    )  # fmt: skip


def is_run(directory: Path) -> bool:
    """Whether the folder is a run's, readable or damaged."""
    return os.path.lexists(directory / "state.json") and _listed(directory) is not None


def is_running(directory: Path) -> bool:
    """Whether the run in that folder is still at work."""
    run = _summary(directory)
    return run is not None and run.state == "running"


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        return True
    return pid > 0


def find_run(name: str) -> Path:
    """A run's folder, given as a path or as (the beginning of) a name below ``runs_root()``. Raises UsageError."""
    path = Path(name)
    try:
        if os.path.lexists(path / "state.json"):
            return path
    except ValueError:
        raise UsageError(f"run {name!r} is no path: give a run's folder, or the beginning of its name") from None
    names = [run.directory.name for run in list_runs(runs_root())]
    # A second run in the same second is named after the first, with a number.
    matching = [name] if name in names else [n for n in names if n.startswith(name)]
    if len(matching) == 1:
        return runs_root() / matching[0]
    if matching:
        raise UsageError(f"run {name!r} could be {', '.join(matching[:4])}: give more of the name")
    if path.is_dir():
        raise UsageError(f"{name} holds no state.json, so it is no run: give a run's folder, or the beginning of its name")
    raise UsageError(f"run {name!r} is not known: {nearest(name, names) if names else f'there are no runs in {runs_root()}'}")
