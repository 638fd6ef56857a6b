"""train: QAT from the calibrated graph, with PTQ's ranges as the start and the plan's fake-quantizers."""

from __future__ import annotations

import copy
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from engine.data.images.base import Data
from engine.events.cancellation import StopToken
from engine.events.event import Event
from engine.lowering.graph.layout import Layout
from engine.lowering.graph.memory import channels_last
from engine.lowering.graph.prepare import Prepared
from engine.numerics.qparams import QParams
from engine.numerics.qtensor import QTensor
from engine.recipe.recipe import QatPart, Threshold
from engine.tasks.evaluation import compare
from engine.training.loop import Fitted, Judged, Loss, Schedule, fit

TEMPERATURE = 2.0


@dataclass(frozen=True)
class Trained:
    """The float graph with the trained parameters, and the grids and integers that go with it."""

    graph: fx.GraphModule
    grids: Mapping[str, QParams]
    weights: Mapping[str, QTensor]
    fitted: Fitted


def train(
    gm: fx.GraphModule, layout: Layout, grids: Mapping[str, QParams], weights: Mapping[str, QTensor], teacher: fx.GraphModule,
    data: Data, part: QatPart, threshold: Threshold, seed: int, device: str, checkpoint: Path, fingerprint: str, stop: StopToken,
) -> Generator[Event, None, Trained]:  # fmt: skip
    """The epoch that is best on the validation split, by the quantity that ``threshold`` is about."""
    torch.manual_seed(seed)
    prepared = Prepared(gm, layout, grids, weights)
    channels_last(prepared.model, device)
    teacher = channels_last(copy.deepcopy(teacher), device)
    # Without live normalization a few large gradients throw a deep network off for good.
    schedule = Schedule(part.epochs, part.batch, part.lr, weight_decay=1e-4, seed=seed, clip=1.0)
    freeze_after = part.freeze_bn * part.epochs

    def judge() -> Generator[Event, None, Judged]:
        judged = yield from compare("qat", {"qat": prepared.model.eval()}, teacher, data, "validation", part.batch * 4, stop, device=device)
        quality = judged["qat"]
        score = {"drop": quality.value, "agreement": quality.agreement}.get(threshold.metric, quality.sqnr_db)
        # Equal answers are told apart by how near the outputs are to fp32's.
        return Judged(quality.value, (score, quality.sqnr_db))

    fitted = yield from fit(
        prepared.model, data, schedule, stage="qat", stop=stop, groups=prepared.groups(schedule.weight_decay),
        loss=_loss(teacher, part.distill, threshold), before_epoch=lambda epoch: prepared.freeze(epoch > freeze_after),
        judge=judge, device=device, checkpoint=checkpoint, fingerprint=fingerprint,
    )  # fmt: skip
    prepared.model.load_state_dict(fitted.best)
    graph = prepared.graph()
    return Trained(graph, prepared.grids(), prepared.weights(graph), fitted)


def _loss(teacher: fx.GraphModule, distill: float, threshold: Threshold) -> Loss:
    """Labels and the fp32 model's softened answers (Hinton et al. 2015, arXiv:1503.02531, section 2), or the distance
    from its outputs where that is what the threshold is about."""

    def answers(x: Tensor) -> Tensor:
        with torch.inference_mode():
            wanted: Tensor = teacher(x)
        return wanted.clone()

    def distance(x: Tensor, logits: Tensor, _: Tensor) -> Tensor:
        wanted = answers(x)
        return F.mse_loss(logits, wanted) / wanted.square().mean()

    def mixed(x: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
        hard = F.cross_entropy(logits, labels)
        if distill == 0:
            return hard
        wanted = F.log_softmax(answers(x) / TEMPERATURE, 1)
        soft = F.kl_div(F.log_softmax(logits / TEMPERATURE, 1), wanted, reduction="batchmean", log_target=True)
        return (1 - distill) * hard + distill * TEMPERATURE**2 * soft

    return distance if threshold.metric in ("mse", "sqnr") else mixed
