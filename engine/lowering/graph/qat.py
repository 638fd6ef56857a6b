"""train: QAT from the calibrated graph, with PTQ's ranges as the start and the plan's fake-quantizers."""

from __future__ import annotations

import copy
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from engine.events.cancellation import StopToken
from engine.events.event import Event
from engine.lowering.graph.layout import Layout
from engine.lowering.graph.memory import channels_last
from engine.lowering.graph.prepare import Prepared
from engine.lowering.graph.structured import structured
from engine.numerics.uniform import QParams, QWeight
from engine.recipe.recipe import QatPart, Threshold
from engine.tasks.base import Batch, Task, forward_of
from engine.tasks.evaluate import evaluate
from engine.training.loop import Fitted, Judged, Loss, Schedule, fit

TEMPERATURE = 2.0


@dataclass(frozen=True)
class Trained:
    """The float graph with the trained parameters, and the grids and integers that go with it."""

    graph: fx.GraphModule
    grids: Mapping[str, QParams]
    weights: Mapping[str, QWeight]
    fitted: Fitted


def train(
    gm: fx.GraphModule, layout: Layout, grids: Mapping[str, QParams], weights: Mapping[str, QWeight], teacher: fx.GraphModule,
    task: Task, part: QatPart, threshold: Threshold, seed: int, device: str, checkpoint: Path, fingerprint: str, stop: StopToken,
) -> Generator[Event, None, Trained]:  # fmt: skip
    """The epoch that is best on the validation split, by the quantity that ``threshold`` is about."""
    torch.manual_seed(seed)
    prepared = Prepared(gm, layout, grids, weights)
    channels_last(prepared.model, device)
    student, reference = structured(prepared.model), structured(channels_last(copy.deepcopy(teacher), device))
    # Without live normalization a few large gradients throw a deep network off for good.
    schedule = Schedule(part.epochs, part.batch, part.lr, weight_decay=1e-4, seed=seed, clip=1.0)
    freeze_after = part.freeze_bn * part.epochs

    def judge() -> Generator[Event, None, Judged]:
        forms = {"qat": forward_of(student.eval())}
        steps = evaluate(task, forms, forward_of(reference), "validation", batch=part.batch * 4, stop=stop, device=device, stage="qat")
        result = (yield from steps)["qat"]
        close = result.closeness
        score = {"drop": task.metric.rank(result.value), "agreement": close.agreement}.get(threshold.metric)
        # Equal answers are told apart by how near the outputs are to fp32's.
        return Judged(result.value, (close.sqnr_db if score is None else score, close.sqnr_db))

    fitted = yield from fit(
        student, task, schedule, stage="qat", stop=stop, groups=prepared.groups(schedule.weight_decay),
        loss=_loss(task, reference, part.distill, threshold), before_epoch=lambda epoch: prepared.freeze(epoch > freeze_after),
        judge=judge, device=device, checkpoint=checkpoint, fingerprint=fingerprint,
    )  # fmt: skip
    student.load_state_dict(fitted.best)
    graph = prepared.graph()
    return Trained(graph, prepared.grids(), prepared.weights(graph), fitted)


def _loss(task: Task, teacher: nn.Module, distill: float, threshold: Threshold) -> Loss:
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
