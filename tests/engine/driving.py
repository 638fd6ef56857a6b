"""What the tests of whole runs share: a consumer of events, and a look at what a run leaves on the disk."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from engine.events.cancellation import StopToken
from engine.events.event import Ask, Event, Progress
from engine.export.parity import tried
from engine.kernels.stopwatch import Stopwatch
from engine.recipe.decisions import Answer
from engine.recipe.recipe import Recipe
from engine.report.report import Report
from engine.runs import pipeline
from engine.tasks.base import Batch, Task
from engine.tasks.timing import Latency

REPOSITORY = Path(__file__).parents[2]

TINY = """
import torch
from torch import nn


class Tiny(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.bn1 = nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 16, 3, stride=2, padding=1)
        self.bn2 = nn.BatchNorm2d(16)
        self.fc = nn.Linear(16, 10)

    def forward(self, x):
        x = torch.relu(self.bn1(self.conv1(x)))
        x = torch.relu(self.bn2(self.conv2(x)))
        return self.fc(x.mean((2, 3)))


def make():
    torch.manual_seed(3)
    model = Tiny()
    for bn in (model.bn1, model.bn2):
        bn.running_mean.normal_(0, 0.2)
        bn.running_var.uniform_(0.5, 1.5)
    return model
"""


@dataclass
class Outcome:
    """``report`` is None where the run did not come to an end; ``error`` says why."""

    events: list[Event] = field(default_factory=list)
    report: Report | None = None
    error: BaseException | None = None

    def of(self, kind: type[Event]) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]

    @property
    def data(self) -> dict[str, Any]:
        assert self.report is not None, self.error
        return self.report.data


def _once(forms: Mapping[str, Any], batch: Batch, stop: StopToken, seconds: float = 0.0) -> dict[str, Latency]:
    """In place of ``latencies``: one call each, and a time that is not measured."""
    stop.check()
    for run in forms.values():
        run(batch)
    return {name: Latency(1.0, 1.0, batch.count) for name in forms}


def _untimed(runners: Mapping[str, Any], task: Task, stop: StopToken, **_: Any) -> Generator[Event, None, dict[str, tuple[Latency, ...]]]:
    """In place of the exports' ``times``."""
    stop.check()
    yield Progress("export", 1, 1, "timings")
    return {name: (Latency(1.0, 1.0, 1), Latency(1.0, 1.0, 64)) for name in runners}


class Untimed(Stopwatch):
    """Runs both of a race once and lets the integers win: what a plan decides is then the same on every machine."""

    def __init__(self, stop: StopToken, seconds: float, machine: str | None = None) -> None:
        super().__init__(stop, math.inf, None, self._once)
        self.quiet = True

    @staticmethod
    def _once(first: Callable[[], object], second: Callable[[], object]) -> tuple[float, float]:
        first()
        second()
        return 1.0, 2.0


@contextmanager
def one_thread() -> Iterator[None]:
    """Threads that wait for each other on a busy machine cost more than they bring. A GPU, where there is one, is left alone."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with patch.object(torch.cuda, "is_available", return_value=False):
            yield
    finally:
        torch.set_num_threads(threads)


@contextmanager
def untimed() -> Iterator[None]:
    with (
        one_thread(),
        patch("engine.tasks.timing.latencies", _once),
        patch("engine.lowering.graph.folding.latencies", _once),
        patch("engine.export.timing.times", _untimed),
        patch("engine.lowering.graph.layer_timing.Stopwatch", Untimed),
        patch("engine.export.parity.tried", lambda *given: None if UNTRIED else tried(*given)),
    ):
        yield


# A process of its own for each export is not needed where it is not what is tested.
UNTRIED = True
Answers = Mapping[str, "Answer | list[Answer]"]


def consume(
    steps: Any, stop: StopToken, answers: Answers | None = None, on_event: Callable[[Event, StopToken], None] | None = None
) -> Outcome:
    """Run to the end; an exception is part of the outcome. A list answers a question that is asked again, in order."""
    seen = Outcome()
    left = {key: list(given) if isinstance(given, list) else [given] for key, given in (answers or {}).items()}
    answer: Answer = None
    while True:
        try:
            event = steps.send(answer)
        except StopIteration as end:
            seen.report = end.value
            return seen
        except BaseException as error:
            seen.error = error
            return seen
        seen.events.append(event)
        given = left.get(event.key) if isinstance(event, Ask) else None
        answer = None if not given else given.pop(0) if len(given) > 1 else given[0]
        if on_event:
            on_event(event, stop)


def drive(recipe: Recipe, out: Path | None, answers: Answers | None = None, on_event: Any = None, attended: bool = False) -> Outcome:
    """A run without its timing."""
    stop = StopToken()
    with untimed():
        return consume(pipeline.run(recipe, out, stop, attended), stop, answers, on_event)


def resumed(directory: Path, on_event: Any = None, answers: Answers | None = None, attended: bool = False) -> Outcome:
    stop = StopToken()
    with untimed():
        return consume(pipeline.resume(directory, stop, attended), stop, answers, on_event)


def tree(place: Path) -> dict[str, bytes | None]:
    """Everything below ``place``: files with their content, folders with None."""
    return {str(p.relative_to(place)): p.read_bytes() if p.is_file() else None for p in sorted(place.rglob("*"))}


def state_of(directory: Path) -> str:
    return str(json.loads((directory / "state.json").read_text())["state"])


def figures(data: Mapping[str, Any]) -> dict[str, Any]:
    """What of a report must be the same in every run of the same recipe."""
    entry = ("value", "interval", "error", "size_bytes", "validation", "loss", "validation_values", "best_epoch", "kept")
    return {
        "baseline": {key: data["baseline"][key] for key in ("value", "interval", "size_bytes")},
        **{which: {key: data[which][key] for key in entry if key in data[which]} for which in ("ptq", "qat") if data[which]},
        "sqnr": {layer["name"]: layer["sqnr_db"] for layer in data["layers"]},
        "graph": data["graph"],
        "met": data["verdict"]["met"],
    }


def child_environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
