"""Text classification: which label a text, or a pair of texts, has, judged by accuracy."""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.data.items import ItemData
from engine.errors import EngineError
from engine.events.cancellation import StopToken
from engine.events.event import Event
from engine.models.text_models import Logits, TextModel
from engine.plain_text import one_line
from engine.recipe.recipe import Recipe
from engine.tasks import items as item_tasks
from engine.tasks import pooling
from engine.tasks.base import Batch, ItemAnswer
from engine.tasks.intervals import bootstrap, paired_error
from engine.tasks.metrics import ACCURACY, F1, MATTHEWS, MetricValue, wilson
from engine.tasks.subject import Subject
from engine.tasks.texts import Encoder, encoded, encoder_of, load_text


class TextClassification(item_tasks.ItemTask):
    """Token ids (N, T) to logits (N, labels), held against labels int64 (N,). ``labels`` names the model's outputs."""

    name, item, unit, plural = "text-classification", "text", "texts", "texts"
    distribution = True

    def __init__(self, items: ItemData, labels: tuple[str, ...], encoder: Encoder | None = None) -> None:
        super().__init__(items)
        self.labels, self.encoder = labels, encoder
        self.metrics = (replace(ACCURACY, chance=1 / len(labels)), F1, MATTHEWS)

    def evaluator(self) -> LabelCounts:
        return LabelCounts(len(self.labels))

    def answers(self, outputs: tuple[Tensor, ...]) -> Tensor | None:
        return outputs[0].argmax(-1)

    def loss(self, raw: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(raw, targets)

    def check(self, outputs: tuple[Tensor, ...], batch: Batch, name: str) -> None:
        wanted = (batch.count, len(self.labels))
        if tuple(outputs[0].shape) != wanted:
            raise EngineError(
                f"{name} returns {tuple(outputs[0].shape)} for {batch.count} {self.plural}, not logits {wanted}: change its head"
            )

    def item_answers(self, raw: Any, batch: Batch) -> Sequence[ItemAnswer]:
        return [
            ItemAnswer(self.labels[int(answer)], self.labels[int(label)], float(answer == label))
            for answer, label in zip(raw.argmax(-1), batch.targets, strict=True)
        ]


class PairClassification(TextClassification):
    """Pairs of texts to logits (N, labels)."""

    name, item, unit, plural = "pair-classification", "pair", "pairs", "pairs"


class LabelCounts:
    """Answers and labels of items: accuracy, F1 averaged over the labels, and Matthews' correlation."""

    pooled: ClassVar[Mapping[str, pooling.How]] = {"_answers": "sum", "_targets": "sum"}

    def __init__(self, labels: int) -> None:
        self._labels = labels
        self._answers: list[Tensor] = []
        self._targets: list[Tensor] = []

    def update(self, raw: Tensor, targets: Tensor) -> None:
        self._answers.append(raw.argmax(-1).cpu())
        self._targets.append(targets.cpu())

    @property
    def _pairs(self) -> tuple[Tensor, Tensor]:
        return torch.cat(self._answers), torch.cat(self._targets)

    def compute(self) -> Mapping[str, MetricValue]:
        answers, targets = self._pairs
        return label_metrics(answers, targets, self._labels, None)

    def chance(self) -> float:
        """The part of items of the most frequent label."""
        return max(Counter(self._pairs[1].tolist()).values(), default=0) / max(len(self._pairs[1]), 1)

    def difference_error(self, reference: LabelCounts) -> float | None:
        """The standard error of the difference in accuracy."""
        mine, other = ((answers == targets).double()[:, None] for answers, targets in (self._pairs, reference._pairs))
        count = len(mine)
        return paired_error(mine, other, lambda sums: sums[:, 0] / count)


def label_metrics(answers: Tensor, targets: Tensor, labels: int, groups: Tensor | None) -> dict[str, MetricValue]:
    """Accuracy, macro F1 and Matthews' correlation of ``answers`` to ``targets``, both int64 (N,). ``groups`` int64 (N,), ascending from
    0, are what is drawn together for intervals (the tokens of a sentence); each answer by itself where it is None, and then the interval
    of the accuracy is Wilson's."""
    from torchmetrics.functional.classification import multiclass_f1_score, multiclass_matthews_corrcoef

    right, total = int((answers == targets).sum()), len(targets)
    f1 = float(multiclass_f1_score(answers, targets, num_classes=labels, average="macro"))
    matthews = float(multiclass_matthews_corrcoef(answers, targets, num_classes=labels))
    counts = _counts(answers, targets, labels, groups)
    if groups is None:
        half = wilson(right, total)
        accuracy = MetricValue(right / total, right / total - half, right / total + half, half)
    else:
        accuracy = bootstrap(counts, lambda sums: _accuracy(sums, labels))
    intervals = (bootstrap(counts, lambda sums: _f1(sums, labels)), bootstrap(counts, lambda sums: _matthews(sums, labels)))
    values = (replace(found, value=value) for found, value in zip(intervals, (f1, matthews), strict=True))
    return dict(zip(("accuracy", "F1", "Matthews"), (accuracy, *values), strict=True))


def _counts(answers: Tensor, targets: Tensor, labels: int, groups: Tensor | None) -> Tensor:
    """By item: how often each label is right, is answered and is wanted, (N, 3 labels)."""
    wanted, given = F.one_hot(targets, labels), F.one_hot(answers, labels)
    each = torch.cat([wanted * given, given, wanted], 1).float()
    if groups is None:
        return each
    return torch.zeros(int(groups.max()) + 1, each.size(1)).index_add_(0, groups, each)


def _accuracy(sums: Tensor, labels: int) -> Tensor:
    return sums[:, :labels].sum(1) / sums[:, 2 * labels :].sum(1)


def _f1(sums: Tensor, labels: int) -> Tensor:
    """The mean over the labels that are wanted or answered at all."""
    both, given, wanted = sums[:, :labels], sums[:, labels : 2 * labels], sums[:, 2 * labels :]
    there = (given + wanted) > 0
    return (2 * both / (given + wanted).clamp(min=1)).sum(1) / there.sum(1)


def _matthews(sums: Tensor, labels: int) -> Tensor:
    """R_K of Gorodkin (2004); 0 where all answers or all labels are the same."""
    both, given, wanted = sums[:, :labels].sum(1), sums[:, labels : 2 * labels], sums[:, 2 * labels :]
    total = wanted.sum(1)
    spread = (total**2 - given.square().sum(1)) * (total**2 - wanted.square().sum(1))
    return torch.where(spread > 0, (both * total - (given * wanted).sum(1)) / spread.clamp(min=1).sqrt(), torch.zeros_like(total))


def label_places(labels: Sequence[str], model: Sequence[str], name: str, data: str) -> dict[str, int]:
    """The place of each of the data's ``labels`` among the ``model``'s: by name, whatever its case, else as a number. Raises EngineError
    for labels that are not among them."""
    exact = {label: i for i, label in enumerate(model)}
    lower = {label.lower(): i for i, label in enumerate(model)}
    numbers = {str(i): i for i in range(len(model))}
    for places, written in ((exact, str), (lower, str.lower), (numbers, str)):
        found = {label: places.get(written(label)) for label in labels}
        if None not in found.values():
            return {label: place for label, place in found.items() if place is not None}
    known = exact if any(label in exact for label in labels) else lower if any(label.lower() in lower for label in labels) else numbers
    strange = [label for label in labels if label not in known and label.lower() not in known]
    some, names = ", ".join(ascii(one_line(label, 40)) for label in strange[:3]), ", ".join(ascii(one_line(n, 40)) for n in model[:5])
    raise EngineError(
        f"{len(strange)} of the labels in {data} are not {name}'s ({some}): it has {names}{' …' if len(model) > 5 else ''}, "
        f"or 0 to {len(model) - 1}"
    )


def where_of(items: ItemData, label: str) -> str:
    """The file and line of the first row of that label."""
    for split in (items.train, items.validation, items.test):
        for row in getattr(split, "rows", ()):
            if row.label == label:
                return str(row.where)
    return items.name


def task_for(language: TextModel, items: ItemData, recipe: Recipe, kind: type[TextClassification]) -> TextClassification:
    """The task on ``items``, whose inputs are texts, for the model. Raises EngineError for labels that it does not have."""
    if len(language.labels) < 2:
        raise EngineError(f"{language.name} gives one number for a text, no labels: give a model with a head for two labels or more")
    places = label_places(items.labels, language.labels, language.name, items.name)

    def targets(labels: Sequence[str]) -> Tensor:
        return torch.tensor([places[label] for label in labels], dtype=torch.long)

    encoder = encoder_of(language, recipe)
    read = encoded(items, encoder, targets, {})
    return kind(replace(read, outputs=len(language.labels), labels=language.labels), language.labels, encoder)


def load(recipe: Recipe, stop: StopToken, device: str) -> Generator[Event, None, Subject]:
    """The model and the texts that ``recipe`` names. Raises UsageError or EngineError in one line for what does not fit."""
    return (yield from load_kind(recipe, device, TextClassification))


def load_kind(recipe: Recipe, device: str, kind: type[TextClassification]) -> Generator[Event, None, Subject]:
    """The ``Subject`` of a task with labels."""

    def made(language: TextModel, items: ItemData, asked: Recipe) -> tuple[Logits, TextClassification]:
        return Logits(language.model), task_for(language, items, asked, kind)

    return (yield from load_text(recipe, device, "sequence", kind.name, made))
