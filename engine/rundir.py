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
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from engine.errors import EngineError, UsageError, nearest
from engine.events import Event, Failed, Progress
from engine.paths import write_atomic

_FILES = ("state.json", "events.jsonl", "recipe.yaml", "report.json", "report.md", "model.safetensors", "checkpoints", "traceback.txt")

State = Literal["running", "finished", "cancelled", "failed"]


@dataclass(frozen=True)
class RunSummary:
    directory: Path
    started: str
    model: str
    data: str
    state: State
    chosen: str | None
    baseline: float | None
    value: float | None
    text: str


class RunDir:
    """One run's folder. ``created`` tells whether this run made it, so that a failure can take it away again."""

    def __init__(self, path: Path, model: str, data: str, need_bytes: int, resumed: bool = False) -> None:
        self.path = path
        self.created = not path.exists()
        self._aside: Path | None = None
        self.written: list[str] = []
        self._about = {"started": time.strftime("%Y-%m-%dT%H:%M:%S"), "model": model, "data": data}
        try:
            path.mkdir(parents=True, exist_ok=True)
            free = shutil.disk_usage(path).free
            if free < need_bytes:
                raise EngineError(
                    f"{path} has {free / 1e6:.1f} MB free and a run needs about {need_bytes / 1e6:.1f} MB: give --out on another disk"
                )
            if not resumed:
                self._set_aside()
            self.state("running")
            self._events = (path / "events.jsonl").open("a" if resumed else "w", encoding="utf-8")
        except (OSError, EngineError) as error:
            self._take_back()
            if isinstance(error, EngineError):
                raise
            raise EngineError(f"{path} cannot be written ({error.strerror or error}): give --out with a folder that can") from error

    def _set_aside(self) -> None:
        """An earlier run in the same folder moves to ``previous/``, whole."""
        if not (self.path / "state.json").exists():
            return
        earlier = _summary(self.path)
        if earlier is not None and earlier.state == "running":
            raise EngineError(f"{self.path} holds a run that is still going: give another --out")
        number = sum(1 for _ in self.path.glob("previous/*")) + 1
        self._aside = self.path / "previous" / str(number)
        self._aside.mkdir(parents=True)
        for name in _FILES:
            if (self.path / name).exists():
                (self.path / name).rename(self._aside / name)

    def _take_back(self) -> None:
        """Undo what this run did to its folder."""
        if self.created:
            shutil.rmtree(self.path, ignore_errors=True)
            return
        with contextlib.suppress(OSError):
            for name in (*self.written, "events.jsonl", "state.json"):
                (self.path / name).unlink(missing_ok=True)
            for name in _FILES if self._aside else ():
                if self._aside and (self._aside / name).exists():
                    (self._aside / name).rename(self.path / name)
            if self._aside:
                self._aside.rmdir()

    def event(self, event: Event) -> None:
        # Progress ticks ten times a second and replays nothing that the other events do not.
        if not isinstance(event, Progress):
            self._events.write(json.dumps(event.to_dict()) + "\n")
            self._events.flush()

    def write(self, name: str, content: bytes | str) -> Path:
        """Raises EngineError when the disk is full or the folder has become read-only."""
        path = self.path / name
        try:
            write_atomic(path, content.encode() if isinstance(content, str) else content)
        except OSError as error:
            raise EngineError(f"{path} cannot be written ({error.strerror or error}): free some space or give --out elsewhere") from error
        self.written.append(name)
        return path

    def state(self, state: State, text: str = "", **more: Any) -> None:
        write_atomic(
            self.path / "state.json",
            (json.dumps({**self._about, "state": state, "text": text, "pid": os.getpid(), **more}) + "\n").encode(),
        )

    def close(self) -> None:
        self._events.close()

    def fail(self, text: str, trace: str | None = None) -> Path:
        """Record a failure. With a traceback, or once training has saved something, the folder stays; otherwise it goes.

        Returns where the traceback is, or the folder.
        """
        if trace is None and not (self.path / "checkpoints").exists():
            self.close()
            self._take_back()
            return self.path
        with contextlib.suppress(OSError, EngineError):
            self.state("failed", text)
            self.event(Failed(text, trace))
            return self.write("traceback.txt", trace) if trace else self.path
        return self.path


def runs_root() -> Path:
    """``QTUI_RUNS``, or ``runs`` in the working directory."""
    return Path(os.environ.get("QTUI_RUNS") or "runs")


def new_directory(model: str, data: str) -> Path:
    stamp = time.strftime("%Y%m%d-%H%M%S")
    stem = "".join(c if c.isalnum() or c in "-_" else "-" for c in f"{model.rpartition(':')[2]}-{Path(data).name}")
    base = runs_root() / f"{stamp}-{stem}"
    path, n = base, 2
    while path.exists():
        path, n = base.with_name(f"{base.name}-{n}"), n + 1
    return path


def list_runs(root: Path) -> list[RunSummary]:
    """The runs below ``root``, newest first; what is not a run is passed over."""
    if not root.is_dir():
        return []
    found = [_summary(path) for path in root.iterdir() if (path / "state.json").is_file()]
    return sorted((run for run in found if run), key=lambda run: (run.started, run.directory.name), reverse=True)


def _summary(directory: Path) -> RunSummary | None:
    try:
        about = json.loads((directory / "state.json").read_text())
        state: State = about["state"]
        if state == "running" and not _alive(int(about["pid"])):
            state = "failed"
        return RunSummary(
            directory, about["started"], about["model"], about["data"], state,
            about.get("chosen"), about.get("baseline"), about.get("value"), about.get("text", ""),
        )  # fmt: skip
    except (OSError, ValueError, KeyError):
        return None


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def find_run(name: str) -> Path:
    """A run's folder, given as a path or as (the beginning of) a name below ``runs_root()``. Raises UsageError."""
    path = Path(name)
    if (path / "state.json").is_file():
        return path
    names = [run.directory.name for run in list_runs(runs_root())]
    matching = [n for n in names if n.startswith(name)]
    if len(matching) == 1:
        return runs_root() / matching[0]
    if matching:
        raise UsageError(f"run {name!r} could be {', '.join(matching[:4])}: give more of the name")
    raise UsageError(f"run {name!r} is not known: {nearest(name, names) if names else f'there are no runs in {runs_root()}'}")
