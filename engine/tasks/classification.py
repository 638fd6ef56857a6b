"""Image classification: which of the classes an image is of, judged by top-1 accuracy."""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.data import registry as data_registry
from engine.data.images.base import Data
from engine.errors import EngineError
from engine.events.cancellation import StopToken
from engine.events.event import Event, Notice
from engine.models.widened import tried_in_float32
from engine.recipe.recipe import Recipe
from engine.tasks import image_models, pooling
from engine.tasks.base import Batch, ItemAnswer, Split, Task
from engine.tasks.fitting import check, first_images, transform_of
from engine.tasks.metrics import ACCURACY, MetricValue, wilson
from engine.tasks.subject import Subject, fingerprint


class Classification(Task):
    """Images (N, C, H, W) to logits (N, classes)."""

    name, item, unit, plural = "classification", "image", "img", "images"
    distribution = True
    not_finite = "check the weights, data.mean and data.std"

    def __init__(self, images: Data) -> None:
        self.images = images
        self.metrics = (replace(ACCURACY, chance=1 / len(images.classes)),)

    def batches(
        self, split: Split, *, batch: int, limit: int | None = None, seed: int | None = None, device: str = "cpu"
    ) -> Iterator[Batch]:
        for x, y in self.images.batches(split, batch, limit=limit, seed=seed, device=device):
            yield Batch((x,), targets=y, count=len(x))

    def training_batches(self, *, batch: int, limit: int, seed: int, device: str = "cpu") -> Iterator[Batch]:
        for x, y in self.images.batches("train", batch, limit=limit, seed=seed, augment=True, device=device):
            yield Batch((x,), targets=y, count=len(x))

    def count(self, split: Split, limit: int | None = None) -> int:
        return self.images.count(split, limit)

    def calibration_batches(self, *, batch: int, limit: int, device: str = "cpu") -> Iterator[Batch]:
        for x, y in self.images.calibration_batches(batch, limit, device):
            yield Batch((x,), targets=y, count=len(x))

    def calibration_count(self, limit: int) -> int:
        return self.images.calibration_count(limit)

    @property
    def calibration_name(self) -> str:
        return "training images" if self.images.calibration is None else "images without labels"

    def outputs(self, raw: Any) -> tuple[Tensor, ...]:
        if not isinstance(raw, Tensor):
            raise EngineError(f"the model returns {type(raw).__name__}, not one tensor of logits: wrap it in a factory that does")
        return (raw,)

    def answers(self, outputs: tuple[Tensor, ...]) -> Tensor | None:
        return outputs[0].argmax(1)

    def item_answers(self, raw: Any, batch: Batch) -> Sequence[ItemAnswer]:
        names = self.images.classes
        pairs = zip(raw.argmax(1).tolist(), batch.targets.tolist(), strict=True)
        return [ItemAnswer(names[found], names[label], float(found == label)) for found, label in pairs]

    def picture(self, batch: Batch, index: int) -> Tensor | None:
        pixels = batch.args[0][index].detach().float().cpu()
        mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (self.images.mean, self.images.std))
        shown: Tensor = ((pixels * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)
        return shown

    def evaluator(self) -> Top1:
        return Top1()

    def loss(self, raw: Any, targets: Any) -> Tensor | None:
        return F.cross_entropy(raw, targets)

    def data(self, calibration: int, limit: int | None) -> dict[str, Any]:
        images = self.images
        return {
            "name": images.name, "calibration": images.calibration_count(calibration), "train": images.count("train"),
            "validation": images.count("validation"), "test": images.count("test", limit),
            "mean": list(images.mean), "std": list(images.std),
            **({"transform": str(images.transform)} if images.transform else {}),
            **({"notes": list(images.notes)} if images.notes else {}),
        }  # fmt: skip


class Top1:
    """The part of items whose largest logit is the label's."""

    pooled: ClassVar[Mapping[str, pooling.How]] = {"right": "sum", "total": "sum", "_classes": "sum"}

    def __init__(self) -> None:
        self.right = self.total = 0
        self._classes: Counter[int] = Counter()

    def update(self, raw: Tensor, targets: Tensor) -> None:
        self.right += int((raw.argmax(1) == targets).sum())
        self.total += len(targets)
        self._classes.update(targets.tolist())

    def compute(self) -> Mapping[str, MetricValue]:
        value, half = self.right / self.total, wilson(self.right, self.total)
        return {"accuracy": MetricValue(value, value - half, value + half, half)}

    def chance(self) -> float:
        """The part of items of the most frequent class: what an answer that looks at nothing gets right."""
        return max(self._classes.values(), default=0) / max(self.total, 1)


def alone(recipe: Recipe) -> Classification:
    """The task on the recipe's images, without the model. Raises UsageError or EngineError in one line."""
    part = recipe.data
    return Classification(data_registry.load(part.name, transform=transform_of(recipe.model), **part.of_images()))


def load(recipe: Recipe, stop: StopToken, device: str) -> Generator[Event, None, Subject]:
    """The model and the images that ``recipe`` names. Raises UsageError or EngineError in one line for whatever does not fit together."""
    # A factory may draw its weights at random: the same recipe then draws the same.
    torch.manual_seed(recipe.seed)
    part = recipe.data
    images = data_registry.load(part.name, transform=transform_of(recipe.model), **part.of_images())
    model, weights, stem = image_models.make(recipe, images)
    example = first_images(images)
    _, said = tried_in_float32(model, lambda _: check(model, example, images, recipe.model))
    if said:
        yield Notice(f"{recipe.model}: {said}")
    if images.transform is not None:
        yield Notice(f"images of {images.name}: {images.transform}")
    for note in images.notes:
        yield Notice(f"{images.name}: {note}")
    yield Notice(
        f"{recipe.model} with {sum(p.numel() for p in model.parameters()):,} parameters, weights {weights}; "
        f"{images.name}: {images.count('train'):,} training, {images.count('validation'):,} validation and "
        f"{images.count('test'):,} test images"
    )
    environment = {"weights": weights, **({"stem": stem} if stem else {})}
    batch = Batch((example,), count=len(example))
    return Subject(model, Classification(images), batch, device, weights, fingerprint(model), "graph", environment)
