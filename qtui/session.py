"""What the app can do, without a terminal: commands go to the engine's thread, events come back into ``state``."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from engine.errors import EngineError, one_line
from engine.events import event as ev
from engine.events.cancellation import StopToken
from engine.recipe.decisions import Answer, Inspect, Sensitive, Strategy
from engine.runs.rundir import RunSummary, list_runs, runs_root
from qtui import messages as ms
from qtui.draft import Draft
from qtui.engine_thread import Engine, EngineThread, TorchEngine, problem
from qtui.mailbox import Mailbox
from qtui.reducer import reduce
from qtui.state import State
from qtui.subject import short_name


class Session:
    """``state`` changes in ``pump`` and with each command, always on the caller's thread."""

    def __init__(self, engine: Engine | None = None) -> None:
        self.state = State()
        self._engine: Engine = engine or TorchEngine()
        self._mail = Mailbox()
        self._thread = EngineThread(self._mail.post)
        self._token: StopToken | None = None
        self._next: Callable[[], None] | None = None
        # Whether the open question's estimate is at work, and what was answered meanwhile.
        self._estimating = False
        self._answered: list[Answer] = []
        self._examined = False
        self._folder: frozenset[tuple[str, int]] = frozenset()

    def pump(self) -> bool:
        """Take in what the engine said since the last time; whether anything came."""
        waiting = self._mail.drain()
        for at, event in waiting:
            if isinstance(event, ms.Asking) and self._estimating:
                self._estimating = False
                if self._answered and self._token is not None:
                    self._thread.answer(self._token, self._answered.pop())
                    continue
            if self._answered and isinstance(event, ev.StageStarted | ev.StageFinished | ev.Progress):
                # Of the estimate, which ends.
                continue
            if isinstance(event, ms.JobEnded):
                self._estimating = False
                self._answered.clear()
            self.state = reduce(self.state, event, at)
            if isinstance(event, ms.JobEnded) and event.kind == "export" and event.outcome != "done":
                # What was finished before is in the report.
                self._load_report(Path(self.state.run.directory))
            if isinstance(event, ms.JobEnded) and event.kind != "examine":
                self.list_runs()
                begin, self._next = self._next, None
                if begin is not None and event.outcome == "done":
                    begin()
        return bool(waiting)

    def examine(self) -> None:
        """Import PyTorch and look at the machine, once; a run that is begun sooner waits for it."""
        if not self._examined:
            self._examined = True
            self._begin("examine", "starting PyTorch", lambda token: self._engine.examine())

    def start(self, recipe: Mapping[str, Any]) -> None:
        """Begin a run of a recipe's fields; ``file`` may name a recipe to start from."""
        model, data = _about(recipe)
        self._begin("run", f"loading {short_name(model)}", lambda token: self._engine.run(recipe, token), model, data)

    def again(self, recipe: Mapping[str, Any], answers: Mapping[str, Answer]) -> None:
        """Begin a run of a recipe's fields whose questions are answered beforehand, once the work at hand is done. What is
        edited now goes on being edited there."""

        def begin() -> None:
            draft = self.state.run.draft
            self._begin("run", "measuring again", lambda token: self._engine.run(recipe, token), *_about(recipe), answers=answers)
            if draft is not None:
                self._tell(ms.Edited(draft))

        if self.state.busy:
            self._next = begin
        else:
            begin()

    @property
    def waits(self) -> bool:
        """Whether a run waits for the work at hand to be done."""
        return self._next is not None

    def resume(self, run: RunSummary) -> None:
        """Go on with a run that was stopped, here or by another front end."""
        self.open(run.directory)
        title = f"resuming {run.directory.name}"
        self._begin("resume", title, lambda token: self._engine.resume(run.directory, token), run.model, run.data)

    def train(self, model: str, data: str, task: str = "") -> None:
        """Train a baseline into the cache; ``task`` is empty for what belongs to the model."""
        about = {"task": task} if task else {}
        title = f"training {short_name(model)} on {short_name(data)}"
        self._begin("train", title, lambda token: self._engine.train(model, data, token, **about), model, data)

    def export(self, formats: Sequence[str]) -> None:
        """Write the model of the run that is shown, which is finished, for other runtimes."""
        run, directory = self.state.run, Path(self.state.run.directory)
        title = f"exporting {', '.join(formats)}"
        self._begin("export", title, lambda token: self._engine.export(directory, formats, token), run.model, run.data)

    def open(self, directory: Path) -> None:
        """Show a run from its files. What cannot be read becomes a problem."""
        from engine.events import replay

        try:
            events = replay.read(directory)
            self._tell(ms.Opened(directory), *events)
            if os.path.lexists(directory / "report.json"):
                self._load_report(directory)
        except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
            # Each event is of its type; what they say of each other may still be of no run that there can be.
            said = f"{type(error).__name__}: {one_line(error, 120)}"
            self._tell(ms.Problem(f"{directory / 'events.jsonl'} is damaged ({said})", "choose another run"))
        except EngineError as error:
            self._tell(problem(error))
        except OSError as error:
            self._tell(ms.Problem(f"{directory} cannot be read ({error.strerror})", "choose another run"))

    def _load_report(self, directory: Path) -> None:
        from engine.report.report import Report

        try:
            self._tell(ms.ReportLoaded(Report.load(directory).data))
        except EngineError as error:
            self._tell(problem(error))

    def answer(self, value: Answer) -> None:
        """Decide the question that is open; without one nothing happens."""
        if self._token is not None and self.state.asking is not None:
            if self.state.job is not None and self.state.job.paused:
                # Held just as the question came: who answers it goes on.
                self.pause()
            if value == Sensitive():
                self._estimate(self._token)
                return
            again = isinstance(value, Sensitive | Inspect) or (isinstance(value, Strategy) and not value.go)
            self._tell(ms.Answered("plan" if again else self.state.asking, self.state.asking == "qat" and value is not False))
            if self._estimating:
                self._answered = [value]
                self._token.interrupt()
            else:
                self._thread.answer(self._token, value)

    @property
    def estimating(self) -> bool:
        """Whether what each layer costs is being estimated, beside a question that stays open."""
        return self._estimating

    def _estimate(self, token: StopToken) -> None:
        if not self._estimating and token is self._token:
            self._estimating = True
            token.interrupt(False)
            self._thread.answer(token, Sensitive())

    def stop(self) -> None:
        """End the work within a batch; its state is saved."""
        self._next = None
        if self._token is not None:
            self._tell(ms.Stopping())
            self._thread.stop(self._token)

    def enough(self) -> None:
        """End training now and keep its best epoch."""
        if self._token is not None:
            self._tell(ms.Stopping(keep=True))
            self._token.go_on()
            self._token.enough()

    def pause(self) -> None:
        """Hold the work, or go on with it."""
        if self._token is not None and self.state.job is not None:
            paused = not self.state.job.paused
            if paused:
                self._token.pause()
            else:
                self._token.go_on()
            self._tell(ms.Paused(paused))

    def edit(self, draft: Draft) -> None:
        self._tell(ms.Edited(draft))

    def dismiss(self) -> None:
        self._tell(ms.Dismissed())

    def list_runs(self) -> None:
        self._tell(ms.RunsListed(tuple(list_runs(runs_root()))))

    def follow_runs(self) -> bool:
        """List the runs again where their folder has changed, or one that was at work elsewhere may have ended; whether they differ."""
        root, here = runs_root(), Path(self.state.run.directory)
        changed = _changes(root)
        if changed == self._folder and not any(run.state == "running" and run.directory != here for run in self.state.runs):
            return False
        self._folder = changed
        found = tuple(list_runs(root))
        if found == self.state.runs:
            return False
        self._tell(ms.RunsListed(found))
        return True

    def close(self, timeout: float = 20.0) -> bool:
        """Stop what runs, save it, and end the thread; whether it ended in time."""
        return self._thread.close(timeout)

    def _begin(
        self, kind: ms.JobKind, title: str, begin: Any, model: str = "", data: str = "", answers: Mapping[str, Answer] | None = None
    ) -> None:
        self.examine()
        self._token = self._thread.submit(kind, begin, answers)
        self._tell(ms.JobStarted(kind, title, model, data))

    def _tell(self, *events: ev.Event) -> None:
        for event in events:
            self.state = reduce(self.state, event, time.monotonic())


def _changes(root: Path) -> frozenset[tuple[str, int]]:
    """When each folder of a run was last written to: files in it are replaced as a whole."""
    try:
        with os.scandir(root) as found:
            return frozenset((entry.name, entry.stat().st_mtime_ns) for entry in found)
    except OSError:
        return frozenset()


def _about(recipe: Mapping[str, Any]) -> tuple[str, str]:
    """The model and the data that a recipe's fields name."""
    return str(recipe.get("model", "")), str((recipe.get("data") or {}).get("name", ""))
