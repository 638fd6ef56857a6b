"""Token classification: the tag of each word of a sentence, judged by accuracy over the words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.data.items import ItemData, Items, ItemSplit
from engine.errors import EngineError
from engine.events.cancellation import StopToken
from engine.events.event import Event
from engine.models.text_models import Logits, TextModel
from engine.recipe.recipe import Recipe
from engine.tasks import items as item_tasks
from engine.tasks import pooling
from engine.tasks.base import Batch, ItemAnswer
from engine.tasks.intervals import paired_error
from engine.tasks.metrics import ACCURACY, F1, MATTHEWS, MetricValue
from engine.tasks.subject import Subject
from engine.tasks.text_classification import label_metrics, label_places
from engine.tasks.texts import encoder_of, load_text

NOTHING = -100
"""The target of a token that no word begins with: special tokens, the rest of a word, and padding."""


class TokenClassification(item_tasks.ItemTask):
    """Token ids (N, T) to logits (N, T, labels), held against labels int64 (N, T), ``NOTHING`` where a token begins no word."""

    name, item, unit, plural = "token-classification", "sentence", "sentences", "sentences"
    distribution = True

    def __init__(self, items: ItemData, labels: tuple[str, ...]) -> None:
        super().__init__(items)
        self.labels = labels
        self.metrics = (replace(ACCURACY, chance=1 / len(labels)), F1, MATTHEWS)

    def evaluator(self) -> TagCounts:
        return TagCounts(len(self.labels))

    def scored(self, outputs: tuple[Tensor, ...], targets: Tensor) -> tuple[Tensor, ...]:
        return (outputs[0][targets != NOTHING],)

    def answers(self, outputs: tuple[Tensor, ...]) -> Tensor | None:
        return outputs[0].argmax(-1)

    def loss(self, raw: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(raw.flatten(0, 1), targets.flatten(), ignore_index=NOTHING)

    def check(self, outputs: tuple[Tensor, ...], batch: Batch, name: str) -> None:
        wanted = (*batch.targets.shape, len(self.labels))
        if tuple(outputs[0].shape) != wanted:
            raise EngineError(f"{name} returns {tuple(outputs[0].shape)} for tokens {tuple(batch.targets.shape)}, not logits {wanted}")

    def item_answers(self, raw: Any, batch: Batch) -> Sequence[ItemAnswer]:
        found = []
        for answers, targets in zip(raw.argmax(-1), batch.targets, strict=True):
            kept = targets != NOTHING
            words = " ".join(self.labels[i] for i in answers[kept].tolist())
            wanted = " ".join(self.labels[i] for i in targets[kept].tolist())
            found.append(ItemAnswer(words, wanted, float((answers[kept] == targets[kept]).double().mean()) if kept.any() else None))
        return found


class TagCounts:
    """Answers and tags of words, sentence by sentence: accuracy, macro F1 and Matthews' correlation over all words."""

    pooled: ClassVar[Mapping[str, pooling.How]] = {"_answers": "sum", "_targets": "sum"}

    def __init__(self, labels: int) -> None:
        self._labels = labels
        self._answers: list[Tensor] = []
        self._targets: list[Tensor] = []

    def update(self, raw: Tensor, targets: Tensor) -> None:
        answers = raw.argmax(-1)
        for some, wanted in zip(answers, targets, strict=True):
            kept = wanted != NOTHING
            self._answers.append(some[kept].cpu())
            self._targets.append(wanted[kept].cpu())

    def compute(self) -> Mapping[str, MetricValue]:
        groups = torch.cat([torch.full((len(part),), i) for i, part in enumerate(self._targets)])
        return label_metrics(torch.cat(self._answers), torch.cat(self._targets), self._labels, groups)

    def details(self) -> dict[str, Any]:
        return {"words": sum(map(len, self._targets))}

    def chance(self) -> float:
        """The part of words that have the most frequent tag."""
        counts = Counter(torch.cat(self._targets).tolist())
        return max(counts.values(), default=0) / max(sum(counts.values()), 1)

    def difference_error(self, reference: TagCounts) -> float | None:
        """The standard error of the difference in accuracy, sentences drawn as they are."""

        def rows(counts: TagCounts) -> Tensor:
            pairs = zip(counts._answers, counts._targets, strict=True)
            return torch.tensor([[float((a == b).sum()), float(len(b))] for a, b in pairs], dtype=torch.float64)

        return paired_error(rows(self), rows(reference), lambda sums: sums[:, 0] / sums[:, 1])


@dataclass(frozen=True, eq=False)
class EncodedSentences:
    """Sentences as a model reads them: a word's tag is that of its first token."""

    rows: ItemSplit
    tokenizer: Any
    context: int
    places: Mapping[str, int]

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, places: Sequence[int]) -> Items:
        sentences, tags = self.rows.read(places)
        found = self.tokenizer(
            [list(words) for words in sentences], is_split_into_words=True, padding=True, truncation=True, max_length=self.context,
            return_tensors="pt", return_attention_mask=True, return_token_type_ids=False,
        )  # fmt: skip
        targets = torch.full(found["input_ids"].shape, NOTHING)
        for i, their in enumerate(tags):
            before: int | None = None
            for at, word in enumerate(found.word_ids(i)):
                if word is not None and word != before:
                    targets[i, at] = self.places[their[word]]
                before = word
        return Items({name: found[name] for name in ("input_ids", "attention_mask")}, targets)


def task_for(language: TextModel, items: ItemData, recipe: Recipe) -> TokenClassification:
    """The task on ``items``, whose inputs are words. Raises EngineError for tags that the model does not have."""
    if not getattr(language.tokenizer, "is_fast", False):
        raise EngineError(f"the tokenizer of {language.name} does not tell which word a token is of: add its tokenizer.json")
    places = label_places(items.labels, language.labels, language.name, items.name)
    encoder = encoder_of(language, recipe)
    splits = {
        name: EncodedSentences(items.split(name), language.tokenizer, encoder.context, places) for name in ("train", "validation", "test")
    }
    about = {**items.about, "context": encoder.context}
    read = replace(items, **splits, outputs=len(language.labels), labels=language.labels, about=about)  # type: ignore[arg-type]
    return TokenClassification(read, language.labels)


def load(recipe: Recipe, stop: StopToken, device: str) -> Generator[Event, None, Subject]:
    """The model and the sentences that ``recipe`` names. Raises UsageError or EngineError in one line for what does not fit."""
    return (yield from load_text(recipe, device, "token", TokenClassification.name, made))


def made(language: TextModel, items: ItemData, recipe: Recipe) -> tuple[Logits, TokenClassification]:
    """The model as the task reads it, and the task."""
    return Logits(language.model), task_for(language, items, recipe)
