"""The training loop: one for baselines, QAT of graphs and fine-tuning of decoders."""

from __future__ import annotations

import math
from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from engine.errors import Cancelled, EngineError
from engine.events.event import EpochFinished, Event, Notice
from engine.events.progress import Every, Ticker
from engine.machine import ranks
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

    With a checkpoint in ``context`` it is saved after each epoch, every half minute and on stop; a file of the same fingerprint is
    continued at its step and ends bit for bit where a training that was not stopped does. When the stop token says enough, it
    ends at the next batch and the epoch that was begun is dropped, the first one excepted. Raises EngineError when the loss is
    not finite, Cancelled on stop.
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


@dataclass
class _Position:
    """Where a training is within ``epoch``: ``steps`` of it are done, whose batches weigh ``weight``. ``random`` is the state of
    torch's generators before the next batch is read."""

    epoch: int
    running: RunningLoss
    random: dict[str, Tensor]
    steps: int = 0
    weight: int = 0

    def state_dict(self) -> dict[str, Any]:
        return {**vars(self), "running": self.running.state_dict()}

    @staticmethod
    def read(state: Mapping[str, Any], device: str) -> _Position:
        """Raises KeyError or TypeError for what is no such state."""
        running = RunningLoss(device)
        running.load_state_dict(state["running"])
        return _Position(**{**state, "running": running})


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
        self.position: _Position | None = None
        self.unsaved = False
        # What the ranks have agreed on in the last step: to stop, to end training here.
        self.stops = self.enough = False
        self.due, self.saving = Every(0.25, context.stop.clock), checkpoint.Due(context.stop.clock)

    def steps(self) -> Generator[Event, None, Fitted]:
        if self._restored():
            yield Notice(f"continuing {self._place()}")
        elif self.judge.before:
            self.history.best = self.trainable.snapshot()
            self.history.start = yield from self.judge.measure()
        for epoch in range(len(self.history.scores) + 1, self.schedule.epochs + 1):
            try:
                loss = yield from self._trained(epoch)
                if loss is None:
                    yield Notice(f"training was ended after epoch {len(self.history.scores)} of {self.schedule.epochs}")
                    break
                judged = yield from self._judged()
            except Cancelled:
                if self.unsaved:
                    self._save()
                if self.position is not None and self.position.running.unread and self.position.running.finite:
                    before = sum(self.counts[: epoch - 1])
                    yield self.position.running.step(self.context.stage, epoch, self.schedule, before + self.position.steps, self.total)
                raise
            yield self._finished(epoch, loss, judged)
        return self.history.fitted()

    def _place(self) -> str:
        """Where a training goes on."""
        if self.position is None:
            return f"after epoch {len(self.history.scores)} of {self.schedule.epochs}"
        epoch, steps = self.position.epoch, self.position.steps
        if steps >= self.counts[epoch - 1]:
            return f"at the validation of epoch {epoch}"
        return f"at epoch {epoch}, step {steps + 1}"

    def _trained(self, epoch: int) -> Generator[Event, None, float | None]:
        """Train one epoch, or what is left of it; its mean loss, or None where it was dropped because there is enough."""
        stop, stage, device = self.context.stop, self.context.stage, self.context.device
        before = sum(self.counts[: epoch - 1])
        ticker = Ticker(stage, self.data.items(epoch), self.data.unit, clock=stop.clock)
        # Dropout draws from the generator of all torch: a training that goes on draws what it would have drawn.
        torch.manual_seed(self.schedule.epoch_seed(epoch))
        self.trainable.before_epoch(epoch)
        batches = self.data.batches(epoch)
        if self.position is None:
            self.position = _Position(epoch, RunningLoss(device), checkpoint.random_state(device))
        at = self.position
        for part in islice(batches, at.steps):
            stop.check()
            ticker.skip(part.items)
        if at.steps:
            checkpoint.restore_random(at.random, device)
        for part in batches:
            self._check()
            if self._has_enough() and self.history.scores:
                return None
            at.running.add(self._step(part.batch, before + at.steps), part.weight)
            at.steps, at.weight = at.steps + 1, at.weight + part.weight
            at.random, self.unsaved = checkpoint.random_state(device), True
            if self.due() or at.steps == self.counts[epoch - 1]:
                yield at.running.step(stage, epoch, self.schedule, before + at.steps, self.total)
            if self.saving():
                self._save()
            yield from ticker.advance(part.items)
        if not at.weight:
            raise EngineError(f"epoch {epoch} has no batch to train on: give more data")
        if at.running.unread:
            yield at.running.step(stage, epoch, self.schedule, before + at.steps, self.total)
        return at.running.total / at.weight

    def _step(self, batch: B, done: int) -> Tensor:
        """One step after ``done`` of all; the loss before it."""
        rate = self.schedule.rate(done, self.total)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group.get("factor", 1.0)
        weight = 1.0
        if ranks.several():
            batch, weight = self.data.share(batch, ranks.number(), ranks.count())
        with self.half.autocast():
            loss = self.trainable.loss(batch)
        self.optimizer.zero_grad()
        if not ranks.several():
            self.half.step(loss, self.optimizer, self.trainable.parameters(), self.schedule.clip)
        else:
            loss = loss * weight
            whole = loss.detach().clone()
            unsaved, self.unsaved = self.unsaved, False
            self.half.step(loss, self.optimizer, self.trainable.parameters(), self.schedule.clip, lambda: self._put_together(whole))
            loss, self.unsaved = whole, unsaved
        self.trainable.after_step()
        return loss

    def _put_together(self, loss: Tensor) -> None:
        """Add up the gradients of all ranks, each of its part of the batch, and the ``loss``, in place; and hear what they were asked."""
        trained = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        stop = self.context.stop
        asked = loss.new_tensor([self.stops, stop.wants_enough, *(parameter.grad is not None for parameter in trained)])
        parts = [p.grad.flatten() if p.grad is not None else p.new_zeros(p.numel()) for p in trained]
        flat = ranks.added_up(torch.cat([asked.float(), loss.reshape(1).float(), *(part.float() for part in parts)]))
        told, total, rest = flat[: len(asked)], flat[len(asked)], flat[len(asked) + 1 :]
        self.stops, self.enough = bool(told[0] > 0), bool(told[1] > 0)
        loss.copy_(total)
        has = (told[2:] > 0).tolist()
        for parameter, gradient, any_ in zip(trained, rest.split([p.numel() for p in trained]), has, strict=True):
            if any_:
                parameter.grad = gradient.reshape(parameter.shape).to(parameter.dtype)

    def _check(self) -> None:
        """Raises Cancelled where the run is to stop: of several ranks all at the same step, so that its state is whole."""
        if not ranks.several():
            self.context.stop.check()
            return
        if self.stops:
            raise Cancelled
        try:
            self.context.stop.check()
        except Cancelled:
            self.stops = True

    def _has_enough(self) -> bool:
        return self.enough if ranks.several() else self.context.stop.wants_enough

    def _judged(self) -> Generator[Event, None, Judged]:
        self.trainable.after_epoch()
        return (yield from self.judge.measure())

    def _finished(self, epoch: int, loss: float, judged: Judged) -> EpochFinished:
        """Take in an epoch that was trained and judged, and save it."""
        self.position = None
        is_best = self.history.add(loss, judged)
        if is_best:
            self.history.best = self.trainable.snapshot()
        self._save()
        rate = self.schedule.rate(sum(self.counts[:epoch]) - 1, self.total)
        return EpochFinished(epoch, self.schedule.epochs, loss, judged.value, rate, is_best, self.context.stage, self.judge.metric)

    def _save(self) -> None:
        """Write the state as of the last step; nothing where the loss is no longer finite."""
        self.unsaved = False
        if not ranks.is_first() or self.context.checkpoint is None or (self.position and not self.position.running.finite):
            return
        began = self.context.stop.clock()
        parts = {
            "model": self.trainable.state_dict(), "optimizer": self.optimizer.state_dict(), "half": self.half.state_dict(),
            "position": self.position and self.position.state_dict(), "fingerprint": self.context.fingerprint,
        }  # fmt: skip
        checkpoint.write(self.context.checkpoint, {**self.history.state_dict(), **parts})
        self.saving.saved(began)

    def _restored(self) -> bool:
        """Whether there was a checkpoint, whose state this is now."""
        kept = ranks.called_by_first(lambda: checkpoint.read(self.context.checkpoint, self.context.fingerprint))
        if kept is None:
            return False
        try:
            # Fine-tuning once named its part ``student``, and scaled no gradients.
            self.trainable.load_state_dict(kept["model"] if "model" in kept else kept["student"])
            self.optimizer.load_state_dict(kept["optimizer"])
            self.half.load_state_dict(kept.get("half", {}))
            self.history.load_state_dict(kept)
            position = kept.get("position")
            self.position = _Position.read(position, self.context.device) if position else None
        except Exception as error:
            raise checkpoint.broken(self.context.checkpoint, error) from error
        return True
