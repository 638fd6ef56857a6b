"""Embeddings: vectors of texts, judged by their cosine similarity to those of the fp32 model."""

from __future__ import annotations

import math
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.data.items import ItemData, Items, ItemSplit
from engine.data.text.passages import Passage
from engine.errors import EngineError
from engine.events.cancellation import StopToken
from engine.events.event import Event
from engine.models.text_models import TextModel, WithMask, pooling_of
from engine.recipe.recipe import Recipe
from engine.tasks import items as item_tasks
from engine.tasks import pooling
from engine.tasks.base import Batch, ItemAnswer
from engine.tasks.intervals import bootstrap, paired_error
from engine.tasks.metrics import COSINE, SPEARMAN, MetricValue
from engine.tasks.subject import Subject
from engine.tasks.texts import Encoder, encoder_of, load_text

Pooling = Literal["mean", "cls"]
# The standard error of Spearman's correlation after Fisher's transformation is this by the root of the pairs less three (Fieller, Hartley
# and Pearson 1957).
_FIELLER = 1.06**0.5


class Embedding(WithMask):
    """Token ids and mask (N, T) to vectors (N, features): the mean of the last layer over the tokens, or its first token."""

    def __init__(self, model: Any, pooling: Pooling) -> None:
        super().__init__(model)
        self.pooling = pooling

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        last: Tensor = self.called(input_ids, attention_mask, None).last_hidden_state
        if self.pooling == "cls":
            return last[:, 0]
        kept = attention_mask.unsqueeze(-1).to(last.dtype)
        return (last * kept).sum(1) / kept.sum(1)


class Embeddings(item_tasks.ItemTask):
    """Token ids to vectors (N, features), held against those that fp32 gives for the same texts."""

    name, item, unit, plural = "embeddings", "text", "texts", "texts"

    def __init__(self, items: ItemData, scored: bool) -> None:
        super().__init__(items)
        self.metrics = (COSINE, SPEARMAN) if scored else (COSINE,)

    def evaluator(self) -> Similarities:
        return Similarities(len(self.metrics) > 1)

    def loss(self, raw: Tensor, targets: Mapping[str, Tensor]) -> Tensor:
        return (1 - F.cosine_similarity(raw, targets["vectors"])).mean()

    def check(self, outputs: tuple[Tensor, ...], batch: Batch, name: str) -> None:
        if outputs[0].dim() != 2 or len(outputs[0]) != batch.count:
            raise EngineError(f"{name} returns {tuple(outputs[0].shape)} for {batch.count} texts, not one vector each")

    def item_answers(self, raw: Any, batch: Batch) -> Sequence[ItemAnswer]:
        alike = F.cosine_similarity(raw, batch.targets["vectors"]).tolist()
        return [ItemAnswer(f"cosine {value:.4f}", "", value) for value in alike]


class Similarities:
    """The cosine of each text's vector to fp32's; of pairs that have a score, the rank correlation of their cosine with it."""

    pooled: ClassVar[Mapping[str, pooling.How]] = {"_cosines": "sum", "_vectors": "sum", "_scores": "sum"}

    def __init__(self, scored: bool) -> None:
        self._scored = scored
        self._cosines: list[Tensor] = []
        self._vectors: list[Tensor] = []
        self._scores: list[Tensor] = []

    def update(self, raw: Tensor, targets: Mapping[str, Tensor]) -> None:
        self._cosines.append(F.cosine_similarity(raw.double(), targets["vectors"].double()).cpu())
        if self._scored:
            self._vectors.append(raw.double().cpu())
            self._scores.append(targets["scores"].cpu())

    def compute(self) -> Mapping[str, MetricValue]:
        found = {"cosine": bootstrap(self._rows, _mean)}
        return {**found, "Spearman": self._spearman()} if self._scored else found

    @property
    def _rows(self) -> Tensor:
        cosines = torch.cat(self._cosines)
        return torch.stack([cosines, torch.ones_like(cosines)], 1)

    def _spearman(self) -> MetricValue:
        from torchmetrics.functional.regression import spearman_corrcoef

        vectors, scores = torch.cat(self._vectors), torch.cat(self._scores)
        pairs = len(vectors) // 2
        alike = F.cosine_similarity(vectors[: 2 * pairs : 2], vectors[1 : 2 * pairs : 2])
        value = float(spearman_corrcoef(alike, scores[: 2 * pairs : 2].double()))
        if pairs < 10 or not abs(value) < 1:
            return MetricValue(value)
        half = 1.96 * _FIELLER / math.sqrt(pairs - 3)
        return MetricValue(value, math.tanh(math.atanh(value) - half), math.tanh(math.atanh(value) + half))

    def difference_error(self, reference: Similarities) -> float | None:
        """The standard error of the difference in the mean cosine."""
        return paired_error(self._rows, reference._rows, _mean)


def _mean(sums: Tensor) -> Tensor:
    return sums[:, 0] / sums[:, 1]


@dataclass(frozen=True, eq=False)
class EncodedPassages:
    """Texts as a model reads them; targets are the vectors that fp32 gives, and the scores of pairs, NaN for a text alone."""

    rows: ItemSplit
    encoder: Encoder
    fp32: nn.Module
    _vectors: dict[int, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, places: Sequence[int]) -> Items:
        texts, passages = self.rows.read(places)
        inputs = self.encoder(texts)
        if any(place not in self._vectors for place in places):
            with torch.no_grad():
                self._vectors.update(zip(places, self.fp32(**inputs).unbind(), strict=True))
        return Items(inputs, {"vectors": torch.stack([self._vectors[i] for i in places]), "scores": _scores(passages)})


def _scores(passages: Sequence[Passage]) -> Tensor:
    return torch.tensor([math.nan if one.score is None else one.score for one in passages], dtype=torch.float64)


def task_for(language: TextModel, items: ItemData, recipe: Recipe) -> tuple[nn.Module, Embeddings]:
    """The module that is measured, and the task on ``items``, whose inputs are texts."""
    module = Embedding(language.model, pooling_of(language.path)).eval().requires_grad_(False)
    encoder = encoder_of(language, recipe)
    splits = {name: EncodedPassages(items.split(name), encoder, module) for name in ("train", "validation", "test")}
    about = {**items.about, "context": encoder.context, "pooling": module.pooling}
    read = replace(items, **splits, about=about)  # type: ignore[arg-type]
    scored = len(items.test) > 1 and items.test.read([0]).targets[0].score is not None
    return module, Embeddings(read, scored)


def load(recipe: Recipe, stop: StopToken, device: str) -> Generator[Event, None, Subject]:
    """The model and the texts that ``recipe`` names. Raises UsageError or EngineError in one line for what does not fit."""
    return (yield from load_text(recipe, device, "encoder", Embeddings.name, task_for))
