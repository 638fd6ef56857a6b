"""A model and a task as the training loop takes them: its batches, its loss, and its metric on the validation split."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from engine.errors import EngineError
from engine.events.cancellation import StopToken
from engine.events.event import Event
from engine.tasks.base import Batch, Split, Task, forward_of
from engine.training.schedule import Schedule
from engine.training.shared_norm import share_statistics
from engine.training.trainable import Judge, Judged, Part, TrainingContext, cut

Loss = Callable[[Batch, Any], Tensor]
"""A batch and the raw outputs to the loss of their mean item."""


@dataclass(frozen=True, kw_only=True)
class ItemSchedule(Schedule):
    """A schedule in batches of ``batch`` items, which ``augment`` changes a little where the task knows how."""

    weight_decay: float = 5e-4
    batch: int
    augment: bool = True


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Weight decay on matrices and convolutions alone: not on biases, normalization or quantization steps."""
    trained = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in trained if p.dim() > 1], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.dim() <= 1], "weight_decay": 0.0},
    ]


class ModelInTraining:
    """``model``, trained as it is: the part of a ``Trainable`` that all models share."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        share_statistics(model)

    def parameter_groups(self, weight_decay: float) -> list[dict[str, Any]]:
        return parameter_groups(self.model, weight_decay)

    def parameters(self) -> Iterable[nn.Parameter]:
        return self.model.parameters()

    def before_epoch(self, epoch: int) -> None:
        self.model.train()

    def after_step(self) -> None:
        pass

    def after_epoch(self) -> None:
        self.model.eval()

    def state_dict(self) -> dict[str, Any]:
        return self.model.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.model.load_state_dict(state)

    def snapshot(self) -> dict[str, Any]:
        return {name: tensor.detach().clone() for name, tensor in self.model.state_dict().items()}


class TaskModel(ModelInTraining):
    """``model`` trained on a task's batches by ``loss``, the task's own where None is given."""

    def __init__(self, model: nn.Module, task: Task, loss: Loss | None = None) -> None:
        super().__init__(model)
        self._loss = loss or _own_loss(task)

    def loss(self, batch: Batch) -> Tensor:
        batch = batch.laid_out()
        return self._loss(batch, self.model(*batch.args, **batch.kwargs))


def _own_loss(task: Task) -> Loss:
    def loss(batch: Batch, raw: Any) -> Tensor:
        found = task.loss(raw, batch.targets)
        if found is None:
            raise EngineError(f"the task {task.name} has no loss: give it one to train a baseline")
        return found

    return loss


class TaskBatches:
    """The training split of ``task`` in an order that ``schedule`` draws for each epoch."""

    def __init__(self, task: Task, schedule: ItemSchedule, device: str = "cpu") -> None:
        self._task, self._schedule, self._device = task, schedule, device
        count, batch = task.count("train"), schedule.batch
        # One item alone has no statistics to normalize it by: it waits for another epoch.
        self._items = count - 1 if count > 1 and count % batch == 1 else count

    @property
    def unit(self) -> str:
        return self._task.unit

    def items(self, epoch: int) -> int:
        return self._items

    def steps(self, epoch: int) -> int:
        return self._task.steps("train", batch=self._schedule.batch, limit=self._items)

    def batches(self, epoch: int) -> Iterator[Part[Batch]]:
        batch, seed = self._schedule.batch, self._schedule.epoch_seed(epoch)
        if self._schedule.augment:
            found = self._task.training_batches(batch=batch, limit=self._items, seed=seed, device=self._device)
        else:
            found = self._task.batches("train", batch=batch, limit=self._items, seed=seed, device=self._device)
        return (Part(one, one.count, one.count) for one in found)

    def share(self, batch: Batch, index: int, count: int) -> tuple[Batch, float]:
        places = cut(batch.count, index, count)
        return batch.items(places), 1 / count if len(places) == batch.count else len(places) / batch.count


def validation(model: nn.Module, task: Task, schedule: ItemSchedule, context: TrainingContext) -> Judge:
    """The task's metric on its validation split."""

    def measure() -> Generator[Event, None, Judged]:
        yield from ()
        value = measured(model, task, "validation", schedule.batch * 4, context.stop, context.device)
        return Judged(value, (task.metric.rank(value),))

    return Judge(measure, task.metric.name)


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
