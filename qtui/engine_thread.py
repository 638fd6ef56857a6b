"""The one thread that runs the engine. PyTorch is imported here, inside a job, after the first frame."""

from __future__ import annotations

import contextlib
import queue
import re
import threading
import traceback
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from engine.errors import Cancelled, EngineError, one_line
from engine.events import event as ev
from engine.events.cancellation import StopToken
from engine.recipe.decisions import Answer
from qtui import messages as ms
from qtui.ownership import owned

Steps = Generator[ev.Event, Answer, Any]

# Choosing a model and starting agrees to these; what is found is shown before anything is changed.
AGREED: Mapping[str, Answer] = {"trace": True, "analyze": True}


class Engine(Protocol):
    """What the thread needs of the engine; each generator ends as ``engine.runs.pipeline`` says."""

    def examine(self) -> dict[str, Any]: ...

    def run(self, recipe: Mapping[str, Any], stop: StopToken) -> Steps: ...

    def resume(self, directory: Path, stop: StopToken) -> Steps: ...

    def train(self, model: str, data: str, stop: StopToken, task: str | None = None) -> Steps: ...

    def export(self, directory: Path, formats: Sequence[str], stop: StopToken) -> Steps: ...


class TorchEngine:
    """The engine itself."""

    def examine(self) -> dict[str, Any]:
        from engine.machine import ranks
        from engine.runs.examine import examine

        ranks.join()
        return examine()

    def run(self, recipe: Mapping[str, Any], stop: StopToken) -> Steps:
        """``recipe`` holds a recipe's fields, or ``file`` beside fields that win over that file; ``out`` the folder."""
        from engine.recipe.recipe import Recipe
        from engine.runs import pipeline

        fields = dict(recipe)
        file, out = fields.pop("file", None), fields.pop("out", None)
        made = Recipe.load(file, **fields) if file else Recipe.make(**fields)
        _told("run", made.model_dump_json())
        steps = pipeline.run(made, Path(out) if out else None, stop, attended=True)
        return owned(Path(out), steps) if out else steps

    def resume(self, directory: Path, stop: StopToken) -> Steps:
        from engine.runs import pipeline

        _told("resume", str(directory))
        return owned(directory, pipeline.resume(directory, stop, attended=True))

    def train(self, model: str, data: str, stop: StopToken, task: str | None = None) -> Steps:
        from engine.runs import pipeline

        command = f"qtui train {model} --data {data}{f' --task {task}' if task else ''}"
        return _by_itself(pipeline.train(model, data, command=command, stop=stop, task=task))

    def export(self, directory: Path, formats: Sequence[str], stop: StopToken) -> Steps:
        """Formats whose files are there already are written again: who chooses them has seen that."""
        from engine.runs import reexport as exporting

        return _by_itself(owned(directory, exporting.export(directory, formats, stop, overwrite=True)))


def _told(what: str, order: str) -> None:
    """Let the other ranks, which follow, begin the same (``qtui.follower``)."""
    from engine.machine import ranks

    if ranks.several():
        ranks.of_first((what, order))


def _by_itself(steps: Steps) -> Steps:
    """What the other ranks take no part in."""
    from engine.machine import ranks

    with ranks.apart():
        return (yield from steps)


@dataclass(frozen=True)
class _Work:
    kind: ms.JobKind
    begin: Callable[[StopToken], Any]
    agreed: Mapping[str, Answer]
    token: StopToken = field(default_factory=StopToken)


class EngineThread:
    """Jobs in, events out, for the life of the process. All public methods may be called from any thread."""

    def __init__(self, post: Callable[[ev.Event], None]) -> None:
        self._post = post
        self._jobs: queue.SimpleQueue[_Work | None] = queue.SimpleQueue()
        self._answers: queue.SimpleQueue[tuple[StopToken, Answer]] = queue.SimpleQueue()
        # Those that wait and the one that runs: leaving stops them all.
        self._unfinished: list[_Work] = []
        # A daemon thread inside torch aborts the process at exit.
        self._thread = threading.Thread(target=self._loop, name="engine", daemon=False)
        self._thread.start()

    def submit(self, kind: ms.JobKind, begin: Callable[[StopToken], Any], answers: Mapping[str, Answer] | None = None) -> StopToken:
        """``begin`` gives a generator of events, or a finished value; ``answers`` are for questions that are not put to a person."""
        work = _Work(kind, begin, {**AGREED, **(answers or {})})
        self._unfinished.append(work)
        self._jobs.put(work)
        return work.token

    def answer(self, token: StopToken, value: Answer) -> None:
        self._answers.put((token, value))

    def stop(self, token: StopToken) -> None:
        """Ends the job at its next batch, and a wait for an answer at once."""
        token.set()
        self._answers.put((token, None))

    def close(self, timeout: float) -> bool:
        """Stop what runs and end the thread; whether it ended within ``timeout`` seconds."""
        self._jobs.put(None)
        for work in list(self._unfinished):
            self.stop(work.token)
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _loop(self) -> None:
        while (work := self._jobs.get()) is not None:
            self._post(ms.JobEnded(work.kind, self._carry_out(work)))
            self._unfinished.remove(work)

    def _carry_out(self, work: _Work) -> Any:
        try:
            work.token.check()
            begun = work.begin(work.token)
            result = self._drive(begun, work) if isinstance(begun, Generator) else begun
        except Cancelled:
            return "stopped"
        except EngineError as error:
            self._post(problem(error))
            return "failed"
        except BaseException as error:
            self._post(_crash(work.kind, error))
            return "failed"
        message = _outcome(work.kind, result)
        if message is not None:
            self._post(message)
        return "done"

    def _drive(self, steps: Steps, work: _Work) -> Any:
        answer: Answer = None
        while True:
            try:
                event = steps.send(answer)
            except StopIteration as end:
                return end.value
            self._post(event)
            answer = None
            if isinstance(event, ev.Ask):
                answer = work.agreed[event.key] if event.key in work.agreed else self._wait(event, work.token)

    def _wait(self, event: ev.Ask, token: StopToken) -> Answer:
        self._post(ms.Asking(event.key, event.default))
        while True:
            # An answer that came too late for an earlier question, or belongs to an earlier job, is not for this one.
            owner, value = self._answers.get()
            if owner is token:
                return value


def problem(error: EngineError) -> ms.Problem:
    """An engine's error as a panel: its line ends in the next step, and may name a traceback."""
    text = one_line(error, 2000)
    trace = ""
    if found := re.search(r"[;:]? *the traceback is in (\S.*)$", text):
        text, trace = text[: found.start()], found[1]
    what, colon, step = text.rpartition(": ")
    return ms.Problem(what, step, trace) if colon else ms.Problem(text, "", trace)


def _outcome(kind: ms.JobKind, result: Any) -> ms.Message | None:
    if kind == "examine":
        return ms.Examined(result)
    if kind == "train":
        return ms.Trained(str(result))
    return ms.ReportLoaded(result.data)


def _crash(kind: str, error: BaseException) -> ms.Problem:
    from engine.paths import cache_dir, write_atomic

    path = cache_dir() / "traceback.txt"
    with contextlib.suppress(OSError):
        write_atomic(path, traceback.format_exc().encode())
    return ms.Problem(f"{type(error).__name__} during {kind}: {one_line(error, 300)}", "look at the traceback", str(path))
