"""train: QAT from the calibrated graph, with PTQ's ranges as the start and the plan's fake-quantizers."""

from __future__ import annotations

import copy
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from engine.events.event import Event
from engine.lowering.graph.layout import Layout
from engine.lowering.graph.prepare import Prepared
from engine.lowering.graph.structured import structured
from engine.models.memory import channels_last
from engine.numerics.qparams import QParams
from engine.numerics.qtensor import QTensor
from engine.recipe.recipe import QatPart, Threshold
from engine.tasks.base import Batch, Task, forward_of
from engine.tasks.evaluate import evaluate
from engine.training.loop import fit
from engine.training.task_model import ItemSchedule, Loss, TaskBatches, TaskModel
from engine.training.trainable import Fitted, Judge, Judged, TrainingContext

TEMPERATURE = 2.0


@dataclass(frozen=True)
class Start:
    """What QAT begins from: the float ``graph``, the ``layout``, grids and integers that calibration and rounding gave it, and
    the folded fp32 graph that is its ``teacher``."""

    graph: fx.GraphModule
    layout: Layout
    grids: Mapping[str, QParams]
    weights: Mapping[str, QTensor]
    teacher: fx.GraphModule


@dataclass(frozen=True)
class Trained:
    """The float graph with the trained parameters, and the grids and integers that go with it."""

    graph: fx.GraphModule
    grids: Mapping[str, QParams]
    weights: Mapping[str, QTensor]
    fitted: Fitted


class FakeQuantized(TaskModel):
    """``prepared``, which ``student`` calls as its model is, as the training loop takes it.

    Its normalizations are frozen in the epochs after ``freeze_after``."""

    def __init__(self, prepared: Prepared, student: nn.Module, task: Task, loss: Loss, freeze_after: float) -> None:
        super().__init__(student, task, loss)
        self._prepared, self._freeze_after = prepared, freeze_after

    def parameter_groups(self, weight_decay: float) -> list[dict[str, Any]]:
        return self._prepared.groups(weight_decay)

    def before_epoch(self, epoch: int) -> None:
        super().before_epoch(epoch)
        self._prepared.freeze(epoch > self._freeze_after)


def train(
    start: Start, task: Task, part: QatPart, threshold: Threshold, seed: int, context: TrainingContext
) -> Generator[Event, None, Trained]:
    """The epoch that is best on the validation split, by the quantity that ``threshold`` is about."""
    torch.manual_seed(seed)
    prepared = Prepared(start.graph, start.layout, start.grids, start.weights)
    channels_last(prepared.model, context.device)
    student, teacher = structured(prepared.model), structured(channels_last(copy.deepcopy(start.teacher), context.device))
    schedule = schedule_of(part, seed)
    trained = FakeQuantized(prepared, student, task, distilling(task, teacher, part.distill, threshold), part.freeze_bn * part.epochs)
    batches, judge = TaskBatches(task, schedule, context.device), closest(task, student, teacher, threshold, schedule, context)
    fitted = yield from fit(trained, batches, judge, schedule, context)
    student.load_state_dict(fitted.best)
    graph = prepared.graph()
    return Trained(graph, prepared.grids(), prepared.weights(graph), fitted)


def schedule_of(part: QatPart, seed: int) -> ItemSchedule:
    """What a recipe asks of QAT. Without live normalization a few large gradients throw a deep network off for good."""
    return ItemSchedule(epochs=part.epochs, batch=part.batch, lr=part.lr, weight_decay=1e-4, seed=seed, clip=1.0)


def closest(
    task: Task, student: nn.Module, teacher: nn.Module, threshold: Threshold, schedule: ItemSchedule, context: TrainingContext
) -> Judge:
    """``student`` on the validation split, by the quantity that ``threshold`` is about, and then by how near its outputs are to those of
    ``teacher``."""

    def measure() -> Generator[Event, None, Judged]:
        forms, batch = {"qat": forward_of(student.eval())}, schedule.batch * 4
        stop, device = context.stop, context.device
        steps = evaluate(task, forms, forward_of(teacher), "validation", batch=batch, stop=stop, device=device, stage=context.stage)
        result = (yield from steps)["qat"]
        close = result.closeness
        score = {"drop": task.metric.rank(result.value), "agreement": close.agreement}.get(threshold.metric)
        return Judged(result.value, (close.sqnr_db if score is None else score, close.sqnr_db))

    return Judge(measure, task.metric.name)


def distilling(task: Task, teacher: nn.Module, distill: float, threshold: Threshold) -> Loss:
    """The task's own loss and the fp32 model's softened answers (Hinton et al. 2015, arXiv:1503.02531, section 2), or the distance
    from its outputs: where that is what the threshold is about, and where the outputs are no logits of classes."""

    def wanted(part: Batch) -> tuple[Tensor, ...]:
        with torch.inference_mode():
            raw = teacher(*part.args, **part.kwargs)
        return tuple(output.clone() for output in task.outputs(raw))

    def distance(part: Batch, raw: Any) -> Tensor:
        pairs = zip(task.outputs(raw), wanted(part), strict=True)
        return torch.stack([F.mse_loss(got, aim) / aim.square().mean() for got, aim in pairs]).sum()

    def mixed(part: Batch, raw: Any) -> Tensor:
        hard = task.loss(raw, part.targets)
        if hard is None:
            return distance(part, raw)
        if distill == 0:
            return hard
        if not task.distribution:
            return (1 - distill) * hard + distill * distance(part, raw)
        (logits,), (aim,) = task.outputs(raw), wanted(part)
        target = F.log_softmax(aim / TEMPERATURE, 1)
        soft = F.kl_div(F.log_softmax(logits / TEMPERATURE, 1), target, reduction="batchmean", log_target=True)
        return (1 - distill) * hard + distill * TEMPERATURE**2 * soft

    return distance if threshold.metric in ("mse", "sqnr") else mixed
