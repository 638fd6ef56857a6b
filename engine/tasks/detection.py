"""Detection: what is where in an image, judged by the mean average precision."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from engine.data.items import ItemData
from engine.errors import EngineError
from engine.events.cancellation import StopToken
from engine.events.event import Event
from engine.recipe.recipe import Recipe
from engine.tasks import average_precision, detection_loss, image_items, items
from engine.tasks.average_precision import MAP, MAP_50, AveragePrecision
from engine.tasks.base import Batch, ItemAnswer
from engine.tasks.box_changes import agreeing
from engine.tasks.detections import Detections, Images, detections, recognized
from engine.tasks.metrics import METRICS
from engine.tasks.subject import Subject

# What a person takes for an answer.
SHOWN = 0.5


class Detection(items.ItemTask):
    """Images (N, 3, H, W) in 0..1, all of one size, to boxes with classes, in any of the forms of ``engine.tasks.detections``; held
    against targets as ``engine.data.boxes.base`` describes them."""

    name, item, unit, plural = "detection", "image", "img", "images"
    metrics = (METRICS[MAP], METRICS[MAP_50])
    sensitive = "box or score output"

    def __init__(self, items: ItemData) -> None:
        super().__init__(items)
        self._losses_inside, self._more = False, ""
        height, width = items.about["size"]
        self.images = Images(height, width, items.outputs)

    def prepare(self, model: nn.Module) -> None:
        """torchvision's detectors scale images themselves, to 800 pixels if nothing is said: the data have done that."""
        transform: Any = getattr(model, "transform", None)
        if hasattr(transform, "min_size") and getattr(transform, "fixed_size", None) is None:
            side = max(self.images.height, self.images.width)
            transform.min_size, transform.max_size = (min(self.images.height, self.images.width),), side
        heads = getattr(model, "roi_heads", None)
        more = [what for what in ("mask", "keypoint") if getattr(heads, f"{what}_predictor", None) is not None]
        self._more = more[0] if more else ""

    def begin_training(self, model: nn.Module) -> Callable[[], None]:
        """A model that gives its losses itself, as torchvision's do, is given the targets too."""
        self._losses_inside = "targets" in inspect.signature(model.forward).parameters

        def end() -> None:
            self._losses_inside = False

        return end

    def training_batches(self, *, batch: int, limit: int, seed: int, device: str = "cpu") -> Iterator[Batch]:
        """With the targets as torchvision's detectors take them, where a baseline of one is trained. Raises EngineError for a model whose
        losses need more than boxes."""
        for part in super().training_batches(batch=batch, limit=limit, seed=seed, device=device):
            if not self._losses_inside:
                yield part
                continue
            if self._more:
                raise EngineError(
                    f"the model learns {self._more}s too, and boxes are all that the data have: give its weights by --weights"
                )
            yield replace(part, kwargs={**part.kwargs, "targets": [_counted_from_1(one) for one in part.targets]})

    def evaluator(self) -> Precision:
        return Precision(self.images)

    def outputs(self, raw: Any) -> tuple[Tensor, ...]:
        """Scores and boxes as they are where they are tensors of one shape; of lists of boxes a map of scores, since two models need not
        find as many."""
        form, parts = recognized(raw, self.images)
        return form.compared(parts, self.images)

    def loss(self, raw: Any, targets: Any) -> Tensor | None:
        """Of cells' scores and boxes, or the sum of the losses that a model gives itself; None for other forms, which training distils
        from fp32."""
        if isinstance(raw, Mapping) and raw and all(isinstance(one, Tensor) and one.dim() == 0 for one in raw.values()):
            return torch.stack([*raw.values()]).sum()
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


def _counted_from_1(one: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A target without crowds, with labels beside the background's 0."""
    kept = one["iscrowd"] == 0
    return {"boxes": one["boxes"][kept], "labels": one["labels"][kept] + 1}


def _shown(one: Detections) -> Detections:
    kept = one.scores >= SHOWN
    return Detections(one.boxes[kept], one.scores[kept], one.labels[kept])


def alone(recipe: Recipe) -> Detection:
    """The task on the recipe's data, without the model. Raises EngineError without pycocotools."""
    # Before any work: the metric comes last.
    average_precision.require()
    return Detection(items.data_of(recipe, Detection.name))


def load(recipe: Recipe, stop: StopToken, device: str) -> Generator[Event, None, Subject]:
    """The model and the data that ``recipe`` names. Raises UsageError or EngineError in one line for what does not fit."""
    return (yield from image_items.load_subject(alone, recipe, device))
