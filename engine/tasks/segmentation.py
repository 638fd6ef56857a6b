"""Semantic segmentation: which class each pixel of an image is of, judged by the mean IoU of the classes."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.data.masks.mask_files import IGNORED
from engine.data.registry import ENTRIES as DATA
from engine.errors import EngineError
from engine.events.cancellation import StopToken
from engine.events.event import Event
from engine.recipe.recipe import Recipe
from engine.tasks import image_items, items, pooling
from engine.tasks.base import Batch, ItemAnswer
from engine.tasks.intervals import bootstrap, paired_error
from engine.tasks.metrics import DICE, MIOU, PIXEL_ACCURACY, MetricValue, batched
from engine.tasks.subject import Subject

# Of the loss of an auxiliary head, which only training has (Zhao et al. 2017, arXiv:1612.01105, section 3.3).
_AUXILIARY = 0.4
_NAMED = 4
# Images of one's own, of which a network may keep a hundred channels at full resolution.
_BATCH = 8


class Segmentation(items.ItemTask):
    """Images to logits (N, classes, H, W), held against masks int64 (N, H, W), where 255 is not measured. Logits of a lower resolution are
    scaled to the mask's. A channel alone is the logit of class 1, or its probability."""

    name, item, unit, plural = "segmentation", "image", "img", "images"
    metrics = (MIOU, PIXEL_ACCURACY, DICE)
    workloads = (batched(1), batched(8))
    not_finite = "check the weights, data.mean and data.std"
    not_taken = "give --size (data.size) with a number of pixels that it takes"

    def outputs(self, raw: Any) -> tuple[Tensor, ...]:
        found = logits_of(raw)
        return () if found is None else (found,)

    def answers(self, outputs: tuple[Tensor, ...]) -> Tensor | None:
        return classes_of(outputs[0])

    def evaluator(self) -> Overlaps:
        return Overlaps(self.items.outputs)

    def loss(self, raw: Any, targets: Tensor) -> Tensor:
        found = logits_of(raw)
        assert found is not None
        loss = _loss(found, targets)
        if isinstance(raw, Mapping) and isinstance(raw.get("aux"), Tensor):
            loss = loss + _AUXILIARY * _loss(raw["aux"], targets)
        return loss

    def check(self, outputs: tuple[Tensor, ...], batch: Batch, name: str) -> None:
        logits, data = outputs[0], self.items
        if logits.dim() != 4 or len(logits) != batch.count:
            raise EngineError(f"{name} returns {tuple(logits.shape)}, not logits of shape (N, classes, H, W): change its head")
        known = max(logits.shape[1], 2)
        # Masks without a list of names need not show all classes.
        if known < data.outputs or (known > data.outputs and data.about.get("classes_named")):
            raise EngineError(f"{name} knows {known} classes and {data.name} has {data.outputs}: use other data or another head")

    def item_answers(self, raw: Any, batch: Batch) -> Sequence[ItemAnswer]:
        found = logits_of(raw)
        if found is None:
            return ()
        answers = classes_of(_scaled(found.float(), batch.targets)).cpu()
        targets, count = batch.targets.cpu(), _known(found, self.items.outputs)
        rows = overlaps(answers, targets, count)
        scores = [float(row) for row in _miou(rows)]
        return [
            ItemAnswer(self._named(answer[target != IGNORED]), self._named(target[target != IGNORED]), score, answer.to(torch.uint8))
            for answer, target, score in zip(answers, targets, scores, strict=True)
        ]

    def _named(self, classes: Tensor) -> str:
        """The classes of pixels in words, those with the most pixels first, without the first class where there are others."""
        numbers, counts = torch.unique(classes, return_counts=True)
        order = [number for number in numbers[counts.argsort(descending=True)].tolist() if number or len(numbers) == 1]
        labels = self.items.labels
        names = [labels[number] if number < len(labels) else str(number) for number in order]
        return ", ".join(names[:_NAMED]) + (" …" if len(names) > _NAMED else "")


def logits_of(raw: Any) -> Tensor | None:
    """The logits among raw outputs: by the names that torchvision (``out``) and transformers (``logits``) give them, else the first
    tensor of floats."""
    if isinstance(raw, Mapping):
        for value in (raw.get("out"), raw.get("logits")):
            if isinstance(value, Tensor):
                return value
    leaves = torch.utils._pytree.tree_leaves(raw)
    return next((leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_floating_point()), None)


def classes_of(logits: Tensor) -> Tensor:
    """The class of each pixel, int64 (N, H, W), of logits (N, classes, H, W)."""
    if logits.shape[1] > 1:
        return logits.argmax(1)
    return (logits[:, 0] > (0.5 if _probabilities(logits) else 0.0)).long()


def _probabilities(logits: Tensor) -> bool:
    # Logits of a whole batch never stay between 0 and 1: what is no object is below.
    return bool(logits.min() >= 0) and bool(logits.max() <= 1)


def _scaled(logits: Tensor, masks: Tensor) -> Tensor:
    if logits.shape[2:] == masks.shape[1:]:
        return logits
    return F.interpolate(logits, size=masks.shape[1:], mode="bilinear", align_corners=False)


def _loss(logits: Tensor, masks: Tensor) -> Tensor:
    logits, measured = _scaled(logits.float(), masks), masks != IGNORED
    count = measured.sum().clamp(min=1)
    if logits.shape[1] > 1:
        return F.cross_entropy(logits, masks, ignore_index=IGNORED, reduction="sum") / count
    wanted, given = masks[measured].float(), logits[:, 0][measured]
    loss = F.binary_cross_entropy if _probabilities(logits) else F.binary_cross_entropy_with_logits
    return loss(given, wanted, reduction="sum") / count


def overlaps(answers: Tensor, masks: Tensor, classes: int) -> Tensor:
    """What each image adds to the sums: of each class the pixels where answer and mask agree, those of the answer and those of the mask;
    float64 (N, 3 * ``classes``)."""
    from torchmetrics.functional.classification import multiclass_confusion_matrix

    rows = []
    for answer, mask in zip(answers, masks, strict=True):
        matrix = multiclass_confusion_matrix(answer, mask, classes, ignore_index=IGNORED, validate_args=False).double()
        rows.append(torch.cat([matrix.diagonal(), matrix.sum(0), matrix.sum(1)]))
    return torch.stack(rows).cpu()


def _known(logits: Tensor, classes: int) -> int:
    return max(logits.shape[1], 2, classes)


class Overlaps:
    """Sums of pixels by class, image by image."""

    pooled: ClassVar[Mapping[str, pooling.How]] = {"_rows": "sum", "_classes": "max"}

    def __init__(self, classes: int) -> None:
        self._classes = classes
        self._rows: list[Tensor] = []

    def update(self, raw: Any, targets: Tensor) -> None:
        found = logits_of(raw)
        assert found is not None
        self._classes = _known(found, self._classes)
        self._rows.append(overlaps(classes_of(_scaled(found.float(), targets)), targets, self._classes))

    @property
    def _items(self) -> Tensor:
        return torch.cat(self._rows)

    def compute(self) -> Mapping[str, MetricValue]:
        rows = self._items
        return {MIOU.name: bootstrap(rows, _miou), PIXEL_ACCURACY.name: bootstrap(rows, _accuracy), DICE.name: bootstrap(rows, _dice)}

    def chance(self) -> float:
        """The mIoU of an answer that is the most frequent class everywhere."""
        wanted = _parts(self._items.sum(0, keepdim=True))[2][0]
        return float(wanted.max() / wanted.sum() / (wanted > 0).sum())

    def difference_error(self, reference: Overlaps) -> float | None:
        """The standard error of the difference in mIoU."""
        return paired_error(self._items, reference._items, _miou)


def _parts(sums: Tensor) -> tuple[Tensor, ...]:
    return sums.chunk(3, 1)


def _miou(sums: Tensor) -> Tensor:
    """The mean over the classes that answers or masks hold of intersection over union (Jaccard), (R,)."""
    both, answered, wanted = _parts(sums)
    return _mean_ratio(both, answered + wanted - both)


def _dice(sums: Tensor) -> Tensor:
    """The mean over the same classes of twice the intersection over the sum of both: the macro F1 of pixels."""
    both, answered, wanted = _parts(sums)
    return _mean_ratio(2 * both, answered + wanted)


def _accuracy(sums: Tensor) -> Tensor:
    both, _, wanted = _parts(sums)
    return both.sum(1) / wanted.sum(1)


def _mean_ratio(part: Tensor, whole: Tensor) -> Tensor:
    return (part / whole).nan_to_num(0.0).sum(1) / (whole > 0).sum(1)


def settled(recipe: Recipe) -> Recipe:
    """The recipe with the task's data, what the model takes, and batches that fit into memory, where nothing was said."""
    recipe = image_items.settled(recipe, Segmentation.name)
    if recipe.data.name in DATA:
        return recipe
    if "batch" not in recipe.data.model_fields_set:
        recipe = image_items.with_data(recipe, {"batch": _BATCH})
    if "batch" not in recipe.qat.model_fields_set:
        qat = type(recipe.qat).model_validate({**recipe.qat.model_dump(exclude_unset=True), "batch": _BATCH})
        recipe = recipe.model_copy(update={"qat": qat})
    return recipe


def alone(recipe: Recipe) -> Segmentation:
    """The task on the recipe's data, without the model."""
    return Segmentation(items.data_of(recipe, Segmentation.name))


def load(recipe: Recipe, stop: StopToken, device: str) -> Generator[Event, None, Subject]:
    """The model and the data that ``recipe`` names. Raises UsageError or EngineError in one line for what does not fit."""
    return (yield from image_items.load_subject(alone, recipe, device))
