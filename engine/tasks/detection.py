"""Detection: what is where in an image, judged by the mean average precision."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from engine.data.items import ItemData
from engine.events.cancellation import StopToken
from engine.events.event import Event
from engine.recipe.recipe import Recipe
from engine.tasks import detection_loss, items
from engine.tasks.average_precision import MAP, MAP_50, AveragePrecision
from engine.tasks.base import Batch, ItemAnswer
from engine.tasks.box_changes import agreeing
from engine.tasks.detections import Detections, Images, detections, recognized
from engine.tasks.metrics import METRICS, MetricValue
from engine.tasks.subject import Subject

# What a person takes for an answer.
SHOWN = 0.5


class Detection(items.ItemTask):
    """Images (N, 3, H, W) in 0..1, all of one size, to boxes with classes, in any of the forms of ``engine.tasks.detections``; held
    against targets as ``engine.data.boxes.base`` describes them."""

    name, item, unit, plural = "detection", "image", "img", "images"
    metrics = (METRICS[MAP], METRICS[MAP_50])

    def __init__(self, items: ItemData) -> None:
        super().__init__(items)
        height, width = items.about["size"]
        self.images = Images(height, width, items.outputs)

    def evaluator(self) -> Precision:
        return Precision(self.images)

    def outputs(self, raw: Any) -> tuple[Tensor, ...]:
        """Scores and boxes as they are where they are tensors of one shape; of lists of boxes a map of scores, since two models need not
        find as many."""
        form, parts = recognized(raw, self.images)
        return form.compared(parts, self.images)

    def loss(self, raw: Any, targets: Any) -> Tensor | None:
        """Of cells' scores and boxes; None for other forms, which training distils from fp32."""
        form, parts = recognized(raw, self.images)
        return detection_loss.loss(parts, targets, self.images) if form.name == "cells" else None

    def item_answers(self, raw: Any, batch: Batch) -> Sequence[ItemAnswer]:
        """Boxes of a score of 0.5 or more. The score of an answer is the part of objects and boxes that agree, at an IoU of 0.5."""
        found = [_shown(one) for one in detections(raw, self.images)]
        return [self._answer(one, wanted) for one, wanted in zip(found, batch.targets, strict=True)]

    def _answer(self, one: Detections, wanted: Mapping[str, Tensor]) -> ItemAnswer:
        counted = wanted["iscrowd"] == 0
        truth = Detections(wanted["boxes"][counted], torch.ones(int(counted.sum())), wanted["labels"][counted])
        return ItemAnswer(self._words(one), self._words(truth), agreeing(one, truth), None, one.boxes, one.labels)

    def _words(self, one: Detections) -> str:
        names = [self._named(label) for label in one.labels.tolist()]
        counted = [f"{names.count(name)} {name}" if names.count(name) > 1 else name for name in dict.fromkeys(sorted(names))]
        return ", ".join(counted) or "nothing"

    def _named(self, label: int) -> str:
        return self.items.labels[label] if 0 <= label < len(self.items.labels) else str(label)


class Precision(AveragePrecision):
    """``AveragePrecision`` of raw outputs."""

    def __init__(self, images: Images) -> None:
        super().__init__(images.classes)
        self._images = images

    def update(self, raw: Any, targets: Any) -> None:
        super().update(detections(raw, self._images), targets)

    def compute(self) -> Mapping[str, MetricValue]:
        return super().compute()


def _shown(one: Detections) -> Detections:
    kept = one.scores >= SHOWN
    return Detections(one.boxes[kept], one.scores[kept], one.labels[kept])


def alone(recipe: Recipe) -> Detection:
    """The task on the recipe's data, without the model."""
    return Detection(items.data_of(recipe, Detection.name))


def load(recipe: Recipe, stop: StopToken, device: str) -> Generator[Event, None, Subject]:
    """The model and the data that ``recipe`` names. Raises UsageError or EngineError in one line for what does not fit."""
    return (yield from items.load_subject(alone(recipe), recipe, device))
