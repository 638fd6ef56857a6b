"""What every run has: a recipe that decisions change, a folder, a clock that leaves pauses out, and its questions."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any, TypeVar

from engine.errors import Cancelled
from engine.events.cancellation import StopToken
from engine.events.event import Ask, Event, Notice, Setting, StageFinished, StageStarted
from engine.kernels.probe import Machine
from engine.machine import ranks
from engine.recipe.changes import with_epochs
from engine.recipe.decisions import Answer, Train
from engine.recipe.recipe import Recipe, Threshold
from engine.runs.absolute import absolute
from engine.runs.rundir import RunDir

T = TypeVar("T")
Run = Generator[Event, Answer, T]


def stage(name: str, title: str, steps: Generator[Event, Any, T], clock: Callable[[], float] = time.perf_counter) -> Run[T]:
    start = clock()
    yield StageStarted(name, title)
    result = yield from steps
    yield StageFinished(name, round(clock() - start, 3))
    return result


class Work:
    """One run's stages, with what they share. ``doing`` is the stage at work, for messages; ``attended`` means that a person
    decides at a screen; ``seconds`` is the time of the stages so far."""

    def __init__(self, recipe: Recipe, machine: Machine, where: RunDir, stop: StopToken, attended: bool = False) -> None:
        self.recipe, self.machine, self.where, self.stop = recipe, machine, where, stop
        self.attended = attended
        self.threshold = Threshold.parse(recipe.threshold)
        self.doing = "loading"
        self.seconds = 0.0

    @property
    def directory(self) -> Path:
        return self.where.path

    @property
    def identity(self) -> str:
        """What was asked, as 16 hex digits, wherever the run is started from."""
        return absolute(self.recipe).fingerprint()

    def environment(self) -> dict[str, Any]:
        """The report's ``environment``."""
        raise NotImplementedError

    def measured(self) -> dict[str, Any]:
        """The report's ``task``, ``measures`` and ``items``."""
        raise NotImplementedError

    def stage(self, name: str, title: str, steps: Generator[Event, Any, T]) -> Run[T]:
        self.doing = name
        self.stop.check()
        start = self.stop.clock()
        result = yield from stage(name, title, steps, self.stop.clock)
        self.seconds += self.stop.clock() - start
        return result

    def setting(self) -> Setting:
        about = self.measured()
        return Setting(
            str(self.where.path), absolute(self.recipe).model_dump(mode="json"), self.environment(), about["task"],
            tuple(about["measures"]), about["items"],
        )  # fmt: skip

    def change(self, recipe: Recipe) -> Run[None]:
        """What was decided belongs to the recipe, so that the run goes on, and runs again, as it was."""
        if recipe == self.recipe:
            return
        self.keep(recipe)
        yield self.setting()

    def keep(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.where.write("recipe.yaml", absolute(recipe).to_yaml())

    def ask(self, key: Any, question: str, needed: bool = False, default: bool = True) -> Run[Answer]:
        """The answer, never None; anything but False is a yes."""
        self.doing = key
        self.stop.check()
        answer = ranks.of_first((yield Ask(key, question, default)))
        self.stop.check()
        answer = default if answer is None else answer
        if needed and answer is False:
            raise Cancelled
        return answer

    def wants_training(self, what: str, met: bool) -> Run[bool]:
        """Whether to train, as the recipe says or as is answered to the question ``what``; ``met`` is whether PTQ meets the
        threshold on validation and on test. What was answered is in the recipe then."""
        part = self.recipe.qat
        if part.mode == "never" or (part.mode == "auto" and met and not self.attended):
            return False
        if part.mode == "auto":
            if not met:
                yield Notice(f"threshold {self.threshold} is not met by PTQ")
            answer = yield from self.ask("qat", f"{what} (QAT, {epochs_of(part.epochs)})?", default=not met)
            if answer is False:
                return False
            wanted = answer.epochs if isinstance(answer, Train) else part.epochs
            # A run that goes on without a person would not ask again where the threshold is met.
            if met or wanted != part.epochs:
                yield from self.change(with_epochs(self.recipe, wanted))
        return True


def epochs_of(count: int) -> str:
    return f"{count} epoch{'' if count == 1 else 's'}"
