"""Forms of a model on one split: the task's metrics, and how far the outputs are from fp32's."""

from __future__ import annotations

import math
from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from engine.errors import EngineError
from engine.events.cancellation import StopToken
from engine.events.event import Event
from engine.events.progress import Ticker
from engine.numerics.sqnr import sqnr_db
from engine.tasks.base import Forward, Split, Task
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
    evaluators = {name: task.evaluator() for name in (REFERENCE, *forms)}
    sums = {name: _Sums(task) for name in evaluators}
    count = 0
    with torch.inference_mode():
        for part in task.batches(split, batch=batch, limit=limit, device=device):
            stop.check()
            part = part.laid_out()
            raw = reference(part)
            expected = task.scored(task.outputs(raw), part.targets)
            if not all(torch.isfinite(output).all() for output in expected):
                raise EngineError(f"the fp32 model gives NaN or infinity on the data: {task.not_finite}")
            for name, evaluator in evaluators.items():
                found = raw if name == REFERENCE else forms[name](part)
                evaluator.update(found, task.held_against(raw, part.targets))
                if watch and name in watch:
                    watch[name].add(part, raw, found)
                sums[name].add(expected, expected if name == REFERENCE else task.scored(task.outputs(found), part.targets))
                stop.check()
            count += part.count
            yield from ticker.advance(part.count)
    first = evaluators[REFERENCE]
    return {name: _result(evaluator, first, sums[name].closeness(), count) for name, evaluator in evaluators.items()}


def _result(evaluator: Any, reference: Any, closeness: Closeness, count: int) -> SplitResult:
    """What an evaluator has found, with what only some evaluators know."""
    chance, samples = getattr(evaluator, "chance", None), getattr(evaluator, "samples", None)
    error = getattr(evaluator, "difference_error", None)
    return SplitResult(
        dict(evaluator.compute()), closeness, count, getattr(evaluator, "details", dict)(), chance() if chance else None,
        samples() if samples else count, error(reference) if error else None,
    )  # fmt: skip


class _Sums:
    """Sums over a split, in doubles."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self.signal = self.noise = self.divergence = 0.0
        self.numbers = self.same = self.answered = 0

    def add(self, expected: tuple[Tensor, ...], found: tuple[Tensor, ...]) -> None:
        for wanted, got in zip(expected, found, strict=True):
            for a, b in zip(*map(_rows, _of_one_shape(wanted, got)), strict=True):
                self.signal += a.double().square().sum().item()
                self.noise += (b - a).double().square().sum().item()
                self.numbers += a.numel()
        first, second = self._task.answers(expected), self._task.answers(found)
        if first is not None and second is not None:
            self.same += int((first == second).sum())
            self.answered += first.numel()
        if self._task.divergence:
            for a, b in zip(_rows(expected[0]), _rows(found[0]), strict=True):
                before, after = a.float().log_softmax(-1), b.float().log_softmax(-1)
                self.divergence += (before.exp() * (before - after)).double().sum().item()

    def closeness(self) -> Closeness:
        agreement = self.same / self.answered if self.answered else None
        divergence = self.divergence / self.answered if self._task.divergence and self.answered else None
        mse = self.noise / self.numbers if self.numbers else math.nan
        return Closeness(mse, sqnr_db(self.signal, self.noise), agreement, divergence)


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
