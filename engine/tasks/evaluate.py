"""Forms of a model on one split: the task's metrics, and how far the outputs are from fp32's."""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from engine.errors import EngineError
from engine.events.cancellation import StopToken
from engine.events.event import Event
from engine.events.progress import Ticker
from engine.machine import ranks
from engine.numerics.sqnr import sqnr_db
from engine.tasks import pooling
from engine.tasks.base import Batch, Forward, Split, Task
from engine.tasks.changes import Watch
from engine.tasks.metrics import MetricValue

REFERENCE = "reference"
# Rows whose differences are held in doubles at a time.
_ROWS = 256


@dataclass(frozen=True)
class Closeness:
    """The distance of a form's outputs from fp32's: mean squared difference, SQNR in dB, the part (0..1) of equal answers, and
    the mean Kullback-Leibler divergence in nats; None where the task has no answers, or no distribution."""

    mse: float
    sqnr_db: float
    agreement: float | None = None
    divergence: float | None = None

    def error(self) -> dict[str, float]:
        """The report's ``error``."""
        found = {"mse": self.mse, "sqnr_db": self.sqnr_db, "agreement": self.agreement, "divergence": self.divergence}
        return {key: value for key, value in found.items() if value is not None}


@dataclass(frozen=True)
class SplitResult:
    """One form on one split. ``metrics`` are by name, the task's first one first; ``count`` is the number of items; ``details``
    are what a task's evaluator tells besides. ``chance`` is the metric of an answer that looks at nothing, ``samples`` counts what
    is independent of each other, and ``difference_error`` is the standard error of the paired difference from fp32; None where the
    task does not know them."""

    metrics: Mapping[str, MetricValue]
    closeness: Closeness
    count: int
    details: Mapping[str, Any] = field(default_factory=dict)
    chance: float | None = None
    samples: int = 0
    difference_error: float | None = None

    @property
    def first(self) -> MetricValue:
        return next(iter(self.metrics.values()))

    @property
    def value(self) -> float:
        """Of the metric that decides."""
        return self.first.value


def evaluate(
    task: Task, forms: Mapping[str, Forward], reference: Forward, split: Split, *, batch: int, stop: StopToken,
    limit: int | None = None, device: str = "cpu", stage: str = "evaluate", watch: Mapping[str, Watch] | None = None,
) -> Generator[Event, None, dict[str, SplitResult]]:  # fmt: skip
    """Judge each of ``forms``, and the fp32 ``reference`` as ``"reference"``, in one pass over a split. ``watch`` takes in, by form,
    which items are answered otherwise than by fp32.

    Raises EngineError for fp32 outputs that are not finite, and as the task's evaluator does; Cancelled on stop.
    """
    ticker = Ticker(stage, task.count(split, limit), task.unit, clock=stop.clock)
    whole = _Judging(task, forms, watch)
    parts: list[tuple[int, dict[str, Any]]] = []
    # Where evaluators cannot be put together, each rank looks at all.
    shared = ranks.several() and whole.is_pooled
    with torch.inference_mode():
        batches = task.batches(split, batch=batch, limit=limit, device=device)
        numbered = ranks.shares(batches) if shared else ((index, part, True) for index, part in enumerate(batches))
        for index, part, is_own in numbered:
            stop.check()
            if not is_own:
                yield from ticker.advance(part.count)
                continue
            part = part.laid_out()
            raw = reference(part)
            expected = task.scored(task.outputs(raw), part.targets)
            if not all(torch.isfinite(output).all() for output in expected):
                raise EngineError(f"the fp32 model gives NaN or infinity on the data: {task.not_finite}")
            # One of each batch: put together in their order, they are what one process has.
            judging = _Judging(task, forms, watch, fresh=True) if shared else whole
            for name in judging.evaluators:
                found = raw if name == REFERENCE else forms[name](part)
                judging.add(name, part, raw, expected, found)
                stop.check()
            judging.count += part.count
            if shared:
                parts.append((index, judging.state()))
            yield from ticker.advance(part.count)
    if not shared:
        return whole.results()
    for _, state in sorted((one for several in ranks.gathered(parts) for one in several), key=lambda one: one[0]):
        whole.take(state)
    return ranks.called_by_first(whole.results)


class _Judging:
    """What is gathered of a split, or of one batch of it: evaluators, sums and what is watched, by form."""

    def __init__(self, task: Task, forms: Mapping[str, Forward], watch: Mapping[str, Watch] | None, fresh: bool = False) -> None:
        self._task = task
        self.evaluators = {name: task.evaluator() for name in (REFERENCE, *forms)}
        self._sums = {name: _Sums(task) for name in self.evaluators}
        self._watch = {name: Watch(task, one.most) if fresh else one for name, one in (watch or {}).items()}
        self.count = 0

    @property
    def is_pooled(self) -> bool:
        return all(pooling.is_pooled(evaluator) for evaluator in self.evaluators.values())

    def add(self, name: str, part: Batch, raw: Any, expected: tuple[Tensor, ...], found: Any) -> None:
        task = self._task
        self.evaluators[name].update(found, task.held_against(raw, part.targets))
        if name in self._watch:
            self._watch[name].add(part, raw, found)
        self._sums[name].add(expected, expected if name == REFERENCE else task.scored(task.outputs(found), part.targets))

    def state(self) -> dict[str, Any]:
        evaluators = {name: pooling.state_of(evaluator) for name, evaluator in self.evaluators.items()}
        sums = {name: one.state() for name, one in self._sums.items()}
        return {
            "evaluators": evaluators,
            "sums": sums,
            "watch": {name: one.state() for name, one in self._watch.items()},
            "count": self.count,
        }

    def take(self, state: Mapping[str, Any]) -> None:
        """What was gathered of the next batch."""
        for name, evaluator in self.evaluators.items():
            pooling.add(evaluator, state["evaluators"][name])
            self._sums[name].take(state["sums"][name])
        for name, one in self._watch.items():
            one.take(state["watch"][name])
        self.count += state["count"]

    def results(self) -> dict[str, SplitResult]:
        first = self.evaluators[REFERENCE]
        return {name: _result(evaluator, first, self._sums[name].closeness(), self.count) for name, evaluator in self.evaluators.items()}


def _result(evaluator: Any, reference: Any, closeness: Closeness, count: int) -> SplitResult:
    """What an evaluator has found, with what only some evaluators know."""
    chance, samples = getattr(evaluator, "chance", None), getattr(evaluator, "samples", None)
    error = getattr(evaluator, "difference_error", None)
    return SplitResult(
        dict(evaluator.compute()), closeness, count, getattr(evaluator, "details", dict)(), chance() if chance else None,
        samples() if samples else count, error(reference) if error else None,
    )  # fmt: skip


class _Sums:
    """Sums over a split, in doubles: their parts are kept and added up at the end, in the order in which they came."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self._signal: list[float] = []
        self._noise: list[float] = []
        self._divergence: list[float] = []
        self._numbers = self._same = self._answered = 0

    def add(self, expected: tuple[Tensor, ...], found: tuple[Tensor, ...]) -> None:
        for wanted, got in zip(expected, found, strict=True):
            for a, b in zip(*map(_rows, _of_one_shape(wanted, got)), strict=True):
                self._signal.append(a.double().square().sum().item())
                self._noise.append((b - a).double().square().sum().item())
                self._numbers += a.numel()
        first, second = self._task.answers(expected), self._task.answers(found)
        if first is not None and second is not None:
            self._same += int((first == second).sum())
            self._answered += first.numel()
        if self._task.divergence:
            for a, b in zip(_rows(expected[0]), _rows(found[0]), strict=True):
                before, after = a.float().log_softmax(-1), b.float().log_softmax(-1)
                self._divergence.append((before.exp() * (before - after)).double().sum().item())

    def state(self) -> tuple[Any, ...]:
        return self._signal, self._noise, self._divergence, self._numbers, self._same, self._answered

    def take(self, state: tuple[Any, ...]) -> None:
        signal, noise, divergence, numbers, same, answered = state
        self._signal += signal
        self._noise += noise
        self._divergence += divergence
        self._numbers, self._same, self._answered = self._numbers + numbers, self._same + same, self._answered + answered

    def closeness(self) -> Closeness:
        agreement = self._same / self._answered if self._answered else None
        divergence = _total(self._divergence) / self._answered if self._task.divergence and self._answered else None
        noise = _total(self._noise)
        mse = noise / self._numbers if self._numbers else math.nan
        return Closeness(mse, sqnr_db(_total(self._signal), noise), agreement, divergence)


def _total(parts: Sequence[float]) -> float:
    # From Python 3.12 on ``sum`` compensates: a report is to be the same with each.
    return functools.reduce(operator.add, parts, 0.0)


def _of_one_shape(wanted: Tensor, got: Tensor) -> tuple[Tensor, Tensor]:
    """Outputs whose number follows from the data, as boxes do: what one of them lacks is taken for zeros, so that it counts as noise."""
    if wanted.shape == got.shape or wanted.dim() != got.dim():
        return wanted, got
    sizes = [max(a, b) for a, b in zip(wanted.shape, got.shape, strict=True)]

    def padded(x: Tensor) -> Tensor:
        whole = x.new_zeros(sizes)
        whole[tuple(slice(size) for size in x.shape)] = x
        return whole

    return padded(wanted), padded(got)


def _rows(x: Tensor) -> tuple[Tensor, ...]:
    return torch.split(x.float(), _ROWS) if x.dim() else (x.float(),)
