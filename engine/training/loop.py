"""The training loop: one for baselines, QAT of graphs and fine-tuning of decoders."""

from __future__ import annotations

import math
from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import torch

from engine.errors import EngineError
from engine.events.event import EpochFinished, Event, Notice
from engine.events.progress import Every, Ticker
from engine.training import checkpoint
from engine.training.adamw import AdamW
from engine.training.optimizer import Optimizer
from engine.training.precision import Half, precision
from engine.training.running_loss import RunningLoss
from engine.training.schedule import Schedule
from engine.training.sgd import SGD
from engine.training.trainable import EpochData, Fitted, Judge, Judged, Trainable, TrainingContext

B = TypeVar("B")
# AdamW's decay of the running mean of squares: shorter than usual, for trainings of some thousand steps.
SQUARES = 0.95


def fit(
    trainable: Trainable[B], data: EpochData[B], judge: Judge, schedule: Schedule, context: TrainingContext
) -> Generator[Event, None, Fitted]:
    """Train ``trainable`` in place on the batches of each epoch, judge it after each, and keep the best.

    With a checkpoint in ``context`` each epoch is saved whole; a file of the same fingerprint is continued and ends bit for bit where
    a training that was not stopped does. When the stop token says enough, it ends at the next batch and the epoch that was
    begun is dropped, the first one excepted. Raises EngineError when the loss is not finite, Cancelled on stop.
    """
    return (yield from _Training(trainable, data, judge, schedule, context).steps())


def make_optimizer(groups: list[dict[str, Any]], schedule: Schedule) -> Optimizer:
    """The optimizer that ``schedule`` names, of ``groups``."""
    if schedule.optimizer == "adamw":
        return AdamW(groups, schedule.lr, (schedule.momentum, SQUARES))
    return SGD(groups, schedule.lr, schedule.momentum)


@dataclass
class _History:
    """The epochs so far, and the snapshot of the best of them and of ``start``, the model as it came."""

    best: dict[str, Any] = field(default_factory=dict)
    start: Judged | None = None
    losses: list[float] = field(default_factory=list)
    values: list[float] = field(default_factory=list)
    scores: list[tuple[float, ...]] = field(default_factory=list)

    def add(self, loss: float, judged: Judged) -> bool:
        """Take in an epoch, and say whether it is the best so far: the last of those that are equally good."""
        self.losses.append(loss)
        self.values.append(judged.value)
        self.scores.append(_comparable(judged.score))
        return self.scores[-1] >= max([*self.scores, *([_comparable(self.start.score)] if self.start else [])])

    def fitted(self) -> Fitted:
        start, count = self.start, len(self.scores)
        last = max(range(count), key=lambda i: (self.scores[i], i)) if count else -1
        if start and (last < 0 or self.scores[last] < _comparable(start.score)):
            last = -1
        value = self.values[last] if last >= 0 or start is None else start.value
        return Fitted(self.best, value, last + 1, tuple(self.losses), tuple(self.values), start.value if start else None)

    def state_dict(self) -> dict[str, Any]:
        start = None if self.start is None else [self.start.value, *self.start.score]
        return {"best": self.best, "losses": self.losses, "values": self.values, "scores": self.scores, "start": start}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.best, self.losses, self.values = state["best"], state["losses"], state["values"]
        # Trainings of text once told their perplexities alone, which rank by their negatives.
        self.scores = [tuple(score) for score in state["scores"]] if "scores" in state else [(-value,) for value in self.values]
        start = state.get("start")
        if isinstance(start, float):
            start = [start, -start]
        self.start = None if start is None else Judged(start[0], tuple(start[1:]))


def _comparable(score: tuple[float, ...]) -> tuple[float, ...]:
    """A figure that is not a number never wins."""
    return tuple(-math.inf if math.isnan(figure) else figure for figure in score)


class _Training(Generic[B]):
    """One call of ``fit``."""

    def __init__(self, trainable: Trainable[B], data: EpochData[B], judge: Judge, schedule: Schedule, context: TrainingContext) -> None:
        self.trainable, self.data, self.judge, self.schedule, self.context = trainable, data, judge, schedule, context
        self.optimizer = make_optimizer(trainable.parameter_groups(schedule.weight_decay), schedule)
        self.half = Half(precision(schedule, context.device), context.device)
        self.counts = [data.steps(epoch) for epoch in range(1, schedule.epochs + 1)]
        self.total = sum(self.counts)
        self.history = _History()
        self.due = Every(0.25, context.stop.clock)

    def steps(self) -> Generator[Event, None, Fitted]:
        if self._restored():
            yield Notice(f"continuing after epoch {len(self.history.scores)} of {self.schedule.epochs}")
        elif self.judge.before:
            self.history.best = self.trainable.snapshot()
            self.history.start = yield from self.judge.measure()
        for epoch in range(len(self.history.scores) + 1, self.schedule.epochs + 1):
            loss = yield from self._trained(epoch)
            if loss is None:
                yield Notice(f"training was ended after epoch {len(self.history.scores)} of {self.schedule.epochs}")
                break
            yield from self._judged(epoch, loss)
        return self.history.fitted()

    def _trained(self, epoch: int) -> Generator[Event, None, float | None]:
        """Train one epoch; its mean loss, or None where it was dropped because there is enough."""
        stop, stage, device = self.context.stop, self.context.stage, self.context.device
        done = sum(self.counts[: epoch - 1])
        last, weight = done + self.counts[epoch - 1], 0
        ticker, running = Ticker(stage, self.data.items(epoch), self.data.unit, clock=stop.clock), RunningLoss(device)
        # Dropout draws from the generator of all torch: a training that goes on draws what it would have drawn.
        torch.manual_seed(self.schedule.epoch_seed(epoch))
        self.trainable.before_epoch(epoch)
        for part in self.data.batches(epoch):
            stop.check()
            if stop.wants_enough and self.history.scores:
                return None
            running.add(self._step(part.batch, done), part.weight)
            weight, done = weight + part.weight, done + 1
            if self.due() or done == last:
                yield running.step(stage, epoch, self.schedule, done, self.total)
            yield from ticker.advance(part.items)
        if not weight:
            raise EngineError(f"epoch {epoch} has no batch to train on: give more data")
        if running.unread:
            yield running.step(stage, epoch, self.schedule, done, self.total)
        return running.total / weight

    def _step(self, batch: B, done: int) -> torch.Tensor:
        """One step after ``done`` of all; the loss before it."""
        rate = self.schedule.rate(done, self.total)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group.get("factor", 1.0)
        with self.half.autocast():
            loss = self.trainable.loss(batch)
        self.optimizer.zero_grad()
        self.half.step(loss, self.optimizer, self.trainable.parameters(), self.schedule.clip)
        self.trainable.after_step()
        return loss

    def _judged(self, epoch: int, loss: float) -> Generator[Event, None, None]:
        """Judge the epoch that was trained, and save it."""
        self.trainable.after_epoch()
        judged = yield from self.judge.measure()
        is_best = self.history.add(loss, judged)
        if is_best:
            self.history.best = self.trainable.snapshot()
        self._save()
        rate = self.schedule.rate(sum(self.counts[:epoch]) - 1, self.total)
        yield EpochFinished(epoch, self.schedule.epochs, loss, judged.value, rate, is_best, self.context.stage, self.judge.metric)

    def _save(self) -> None:
        if self.context.checkpoint is None:
            return
        parts = {
            "model": self.trainable.state_dict(), "optimizer": self.optimizer.state_dict(), "half": self.half.state_dict(),
            "fingerprint": self.context.fingerprint,
        }  # fmt: skip
        checkpoint.write(self.context.checkpoint, {**self.history.state_dict(), **parts})

    def _restored(self) -> bool:
        """Whether there was a checkpoint, whose state this is now."""
        kept = checkpoint.read(self.context.checkpoint, self.context.fingerprint)
        if kept is None:
            return False
        try:
            # Fine-tuning once named its part ``student``, and scaled no gradients.
            self.trainable.load_state_dict(kept["model"] if "model" in kept else kept["student"])
            self.optimizer.load_state_dict(kept["optimizer"])
            self.half.load_state_dict(kept.get("half", {}))
            self.history.load_state_dict(kept)
        except Exception as error:
            raise checkpoint.broken(self.context.checkpoint, error) from error
        return True
