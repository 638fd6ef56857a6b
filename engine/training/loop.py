"""The training loop: baselines and QAT differ in the model, the loss and what happens between epochs."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from engine.errors import EngineError
from engine.events.cancellation import StopToken
from engine.events.event import EpochFinished, Event, Notice
from engine.events.progress import Every, Ticker
from engine.tasks.base import Batch, Split, Task, forward_of
from engine.training.checkpoint import broken
from engine.training.checkpoint import read as read_checkpoint
from engine.training.checkpoint import write as write_checkpoint
from engine.training.precision import Half, half_type
from engine.training.running_loss import RunningLoss
from engine.training.schedule import warm_cosine
from engine.training.sgd import SGD

Loss = Callable[[Batch, Any], Tensor]


@dataclass(frozen=True)
class Schedule:
    """SGD with Nesterov momentum; the learning rate rises linearly over ``warmup`` (a part of all steps) and falls as a
    cosine to zero. ``seed`` orders the images and their augmentation. ``clip`` bounds the norm of the gradient. ``mixed``
    computes in 16 bits where the device is fast at it."""

    epochs: int
    batch: int
    lr: float
    weight_decay: float = 5e-4
    momentum: float = 0.9
    warmup: float = 0.1
    augment: bool = True
    seed: int = 0
    clip: float | None = None
    mixed: bool = False

    def rate(self, step: int, steps: int) -> float:
        """The learning rate of step 0..``steps`` - 1."""
        return warm_cosine(self.lr, self.warmup, step, steps)


@dataclass(frozen=True)
class Fitted:
    """``best`` is the state of the best epoch (counted from 1), ``value`` its validation metric (0..1); ``losses`` and
    ``values`` hold each epoch's mean training loss and validation metric, fewer than were asked for when it was enough."""

    best: dict[str, Tensor]
    value: float
    epoch: int
    losses: tuple[float, ...]
    values: tuple[float, ...]


@dataclass(frozen=True)
class Judged:
    """A validation result: the metric (0..1) to show, and the score that ranks epochs, compared in order."""

    value: float
    score: tuple[float, ...]


def parameter_groups(model: nn.Module, schedule: Schedule) -> list[dict[str, Any]]:
    """Weight decay on matrices and convolutions alone: not on biases, normalization or quantization steps."""
    trained = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in trained if p.dim() > 1], "weight_decay": schedule.weight_decay},
        {"params": [p for p in trained if p.dim() <= 1], "weight_decay": 0.0},
    ]


def precision(schedule: Schedule, device: str) -> str | None:
    """``bfloat16`` or ``float16`` where training by ``schedule`` computes in it, None where it computes in float32."""
    found = half_type(device) if schedule.mixed else None
    return str(found).removeprefix("torch.") if found else None


def fit(
    model: nn.Module,
    task: Task,
    schedule: Schedule,
    *,
    stage: str,
    stop: StopToken,
    groups: list[dict[str, Any]] | None = None,
    loss: Loss | None = None,
    before_epoch: Callable[[int], None] = lambda epoch: None,
    judge: Callable[[], Generator[Event, None, Judged]] | None = None,
    device: str = "cpu",
    checkpoint: Path | None = None,
    fingerprint: str = "",
) -> Generator[Event, None, Fitted]:
    """Train ``model`` in place on the training split, by the task's own loss unless ``loss`` is given, which maps a batch and the raw
    outputs to a loss; judge each epoch on the validation split, by the task's metric unless ``judge`` does.

    ``groups`` may scale the learning rate of a group by its ``factor``. With ``checkpoint`` each epoch is saved whole;
    a file of the same ``fingerprint`` is continued. When ``stop`` says enough, it ends at the next batch and the epoch
    that was begun is dropped, the first one excepted. Raises EngineError when the loss is not finite, Cancelled on stop.
    """
    measure = loss or _own_loss(task)
    optimizer = SGD(groups or parameter_groups(model, schedule), schedule.lr, schedule.momentum)
    images = _whole(task.count("train"), schedule.batch)
    batches = math.ceil(images / schedule.batch)
    steps = schedule.epochs * batches
    losses: list[float] = []
    values: list[float] = []
    scores: list[tuple[float, ...]] = []
    best: dict[str, Tensor] = {}
    half = Half(precision(schedule, device), device)
    kept = read_checkpoint(checkpoint, fingerprint)
    if kept:
        try:
            model.load_state_dict(kept["model"])
            optimizer.load_state_dict(kept["optimizer"])
            half.load_state_dict(kept["half"])
            losses, values, scores, best = kept["losses"], kept["values"], [tuple(s) for s in kept["scores"]], kept["best"]
        except Exception as error:
            raise broken(checkpoint, error) from error
        yield Notice(f"continuing after epoch {len(losses)} of {schedule.epochs}")
    due = Every(0.25, stop.clock)
    for epoch in range(len(losses) + 1, schedule.epochs + 1):
        ticker = Ticker(stage, images, task.unit, clock=stop.clock)
        running, step = RunningLoss(device), (epoch - 1) * batches
        seed = schedule.seed * 1000 + epoch
        # Dropout draws from here: a training that goes on draws what it would have drawn.
        torch.manual_seed(seed)
        model.train()
        before_epoch(epoch)
        for part in _epoch(task, schedule, images, seed, device):
            stop.check()
            if stop.wants_enough and scores:
                yield Notice(f"training was ended after epoch {len(scores)} of {schedule.epochs}")
                return _fitted(best, losses, values, scores)
            for group in optimizer.param_groups:
                group["lr"] = schedule.rate(step, steps) * group.get("factor", 1.0)
            part = part.laid_out()
            with half.autocast():
                value = measure(part, model(*part.args, **part.kwargs))
            optimizer.zero_grad()
            half.step(value, optimizer, model.parameters(), schedule.clip)
            running.add(value, part.count)
            step += 1
            if due() or step % batches == 0:
                yield running.step(stage, epoch, schedule, step, steps)
            yield from ticker.advance(part.count)
        losses.append(running.total / images)
        if judge is None:
            top = measured(model, task, "validation", schedule.batch * 4, stop, device)
            judged = Judged(top, (task.metric.rank(top),))
        else:
            judged = yield from judge()
        values.append(judged.value)
        # A figure that is not a number never wins.
        scores.append(tuple(-math.inf if math.isnan(figure) else figure for figure in judged.score))
        is_best = scores[-1] >= max(scores)
        if is_best:
            best = {k: v.detach().clone() for k, v in model.state_dict().items()}
        if checkpoint:
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "half": half.state_dict(), "best": best}
            write_checkpoint(checkpoint, {**state, "losses": losses, "values": values, "scores": scores, "fingerprint": fingerprint})
        yield EpochFinished(epoch, schedule.epochs, losses[-1], values[-1], schedule.rate(step - 1, steps), is_best, stage)
    return _fitted(best, losses, values, scores)


def _whole(images: int, batch: int) -> int:
    """How many images an epoch reads: one alone has no statistics to normalize it by, so it waits for another epoch."""
    return images - 1 if images > 1 and images % batch == 1 else images


def _fitted(best: dict[str, Tensor], losses: list[float], values: list[float], scores: list[tuple[float, ...]]) -> Fitted:
    last = max(range(len(scores)), key=lambda i: (scores[i], i))
    return Fitted(best, values[last], last + 1, tuple(losses), tuple(values))


def _own_loss(task: Task) -> Loss:
    def loss(part: Batch, raw: Any) -> Tensor:
        found = task.loss(raw, part.targets)
        if found is None:
            raise EngineError(f"the task {task.name} has no loss: give it one to train a baseline")
        return found

    return loss


def _epoch(task: Task, schedule: Schedule, items: int, seed: int, device: str) -> Iterator[Batch]:
    if schedule.augment:
        return task.training_batches(batch=schedule.batch, limit=items, seed=seed, device=device)
    return task.batches("train", batch=schedule.batch, limit=items, seed=seed, device=device)


def measured(
    model: nn.Module, task: Task, split: Split, batch: int, stop: StopToken, device: str = "cpu", limit: int | None = None
) -> float:
    """The task's metric of ``model``, in eval mode, on a split."""
    forward, evaluator = forward_of(model.eval()), task.evaluator()
    with torch.inference_mode():
        for part in task.batches(split, batch=batch, limit=limit, device=device):
            stop.check()
            evaluator.update(forward(part.laid_out()), part.targets)
    return evaluator.compute()[task.metric.name].value
