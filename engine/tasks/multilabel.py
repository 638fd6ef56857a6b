"""Multilabel classification: which of several labels hold for an image, judged by the mean average precision of the labels."""

from __future__ import annotations

import warnings
from collections.abc import Generator, Mapping, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.errors import EngineError
from engine.events.cancellation import StopToken
from engine.events.event import Event
from engine.recipe.recipe import Recipe
from engine.tasks import image_items, items, pooling
from engine.tasks.base import Batch, ItemAnswer
from engine.tasks.intervals import LEAST, RESAMPLES, between, bootstrap, draws
from engine.tasks.metrics import F1, MAP, MetricValue
from engine.tasks.subject import Subject

# Resamples that are ranked at a time, in numbers.
_AT_ONCE = 4_000_000
_NAMED = 4


class Multilabel(items.ItemTask):
    """Images to logits (N, labels), held against labels float (N, labels) of 0 and 1. Outputs of which a whole split lies in 0..1 are
    probabilities."""

    name, item, unit, plural = "multilabel", "image", "img", "images"
    metrics = (MAP, F1)
    not_finite = "check the weights, data.mean and data.std"
    not_taken = "give --size (data.size) with a number of pixels that it takes"

    def answers(self, outputs: tuple[Tensor, ...]) -> Tensor | None:
        return (outputs[0] > _threshold(outputs[0])).long()

    def evaluator(self) -> Ranking:
        return Ranking()

    def loss(self, raw: Tensor, targets: Tensor) -> Tensor:
        logits = raw.float()
        if _threshold(logits):
            return F.binary_cross_entropy(logits, targets)
        return F.binary_cross_entropy_with_logits(logits, targets)

    def check(self, outputs: tuple[Tensor, ...], batch: Batch, name: str) -> None:
        if outputs[0].shape != batch.targets.shape:
            found, wanted = tuple(outputs[0].shape), tuple(batch.targets.shape)
            raise EngineError(
                f"{name} returns {found} for {batch.count} images, and {self.items.name} has labels {wanted}: change its head"
            )

    def item_answers(self, raw: Any, batch: Batch) -> Sequence[ItemAnswer]:
        found, wanted = self.outputs(raw)[0].cpu(), batch.targets.cpu() > 0.5
        holds = found > _threshold(found)
        both, either = (holds & wanted).sum(1).tolist(), (holds | wanted).sum(1).tolist()
        scores = [part / whole if whole else 1.0 for part, whole in zip(both, either, strict=True)]
        return [ItemAnswer(self._named(a), self._named(b), score) for a, b, score in zip(holds, wanted, scores, strict=True)]

    def _named(self, holds: Tensor) -> str:
        names = [self.items.labels[i] for i in holds.nonzero().flatten().tolist()]
        return (", ".join(names[:_NAMED]) + (" …" if len(names) > _NAMED else "")) or "none"


def _threshold(outputs: Tensor) -> float:
    """Above which a label holds: 0 of logits, 0.5 of probabilities."""
    return 0.5 if bool(outputs.min() >= 0) and bool(outputs.max() <= 1) else 0.0


class Ranking:
    """The outputs and labels of a split."""

    pooled: ClassVar[Mapping[str, pooling.How]] = {"_outputs": "sum", "_targets": "sum"}

    def __init__(self) -> None:
        self._outputs: list[Tensor] = []
        self._targets: list[Tensor] = []

    def update(self, raw: Tensor, targets: Tensor) -> None:
        self._outputs.append(raw.double().cpu())
        self._targets.append(targets.cpu())

    @property
    def _both(self) -> tuple[Tensor, Tensor]:
        return torch.cat(self._outputs), torch.cat(self._targets)

    def compute(self) -> Mapping[str, MetricValue]:
        outputs, targets = self._both
        value = mean_average_precision(outputs, targets)
        ranked = MetricValue(value) if len(outputs) < LEAST else between(value, resampled_precision(outputs, targets))
        holds = outputs > _threshold(outputs)
        wanted = targets > 0.5
        sums = torch.cat([holds & wanted, holds & ~wanted, ~holds & wanted], 1)
        return {MAP.name: ranked, F1.name: bootstrap(sums, _f1)}

    def chance(self) -> float:
        """The mAP of an answer that is the same for all images: the mean part of images for which a label holds."""
        return float(self._both[1].double().mean())

    def difference_error(self, reference: Ranking) -> float | None:
        """The standard error of the difference in mAP."""
        (mine, targets), (other, _) = self._both, reference._both
        if len(mine) < LEAST:
            return None
        difference = resampled_precision(mine, targets) - resampled_precision(other, targets)
        return float(difference[torch.isfinite(difference)].std())


def mean_average_precision(outputs: Tensor, targets: Tensor) -> float:
    """The mean over labels of the average precision, of outputs and labels (N, labels): 0 of a label that holds for no image."""
    from torchmetrics.functional.classification import multilabel_average_precision

    if outputs.shape[1] == 1:
        from torchmetrics.functional.classification import binary_average_precision

        return float(binary_average_precision(outputs[:, 0], targets[:, 0].long()))
    with warnings.catch_warnings():
        # It warns of labels that hold for no image; a note of the data tells them.
        warnings.simplefilter("ignore")
        return float(multilabel_average_precision(outputs, targets.long(), outputs.shape[1], average="macro"))


def resampled_precision(outputs: Tensor, targets: Tensor, resamples: int = RESAMPLES) -> Tensor:
    """The mean average precision of items drawn with replacement, (resamples,)."""
    times = draws(len(outputs), resamples)
    rows = max(1, _AT_ONCE // len(outputs))
    return torch.cat([weighted_precision(outputs, targets, part) for part in torch.split(times, rows)])


def weighted_precision(outputs: Tensor, targets: Tensor, times: Tensor) -> Tensor:
    """The mean average precision where each item counts as often as ``times`` (R, N) say, (R,). A label that holds for no item of a
    resample does not count there."""
    found = []
    held = targets.sum(0) > 0
    for scores, holds in zip(outputs.T[held], targets.double().T[held], strict=True):
        order = scores.argsort(descending=True)
        ranked, weights = scores[order], times[:, order]
        # Items of equal scores come together: precision is taken after the last of them.
        last = torch.ones_like(ranked, dtype=torch.bool)
        last[:-1] = ranked[1:] != ranked[:-1]
        right = (weights * holds[order]).cumsum(1)[:, last]
        precision = right / weights.cumsum(1)[:, last]
        gained = torch.diff(right, dim=1, prepend=right.new_zeros(len(right), 1))
        # Nothing drawn yet: neither precision nor gain.
        found.append((precision.nan_to_num(0.0) * gained).sum(1) / right[:, -1])
    if not found:
        return times.new_zeros(len(times))
    return torch.stack(found, 1).nanmean(1) * held.double().mean()


def _f1(sums: Tensor) -> Tensor:
    """The mean over labels of the F1 at the threshold, 0 for a label that neither holds nor is answered."""
    right, wrong, missed = sums.chunk(3, 1)
    return (2 * right / (2 * right + wrong + missed)).nan_to_num(0.0).mean(1)


def settled(recipe: Recipe) -> Recipe:
    """The recipe with the task's data and what the model takes, where nothing was said."""
    return image_items.settled(recipe, Multilabel.name)


def alone(recipe: Recipe) -> Multilabel:
    """The task on the recipe's data, without the model."""
    return Multilabel(items.data_of(recipe, Multilabel.name))


def load(recipe: Recipe, stop: StopToken, device: str) -> Generator[Event, None, Subject]:
    """The model and the data that ``recipe`` names. Raises UsageError or EngineError in one line for what does not fit."""
    return (yield from image_items.load_subject(alone, recipe, device))
