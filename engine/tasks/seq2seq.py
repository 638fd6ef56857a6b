"""Sequence to sequence: a text made of a text, judged by the loss of each token of the text that is right."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.data.items import ItemData, Items, ItemSplit
from engine.errors import EngineError
from engine.events.cancellation import StopToken
from engine.events.event import Event
from engine.models.text_models import TextModel
from engine.recipe.recipe import Recipe
from engine.tasks import items as item_tasks
from engine.tasks import pooling
from engine.tasks.base import Batch, ItemAnswer
from engine.tasks.intervals import bootstrap, paired_error
from engine.tasks.metrics import EXACT, LOSS, MetricValue, wilson
from engine.tasks.subject import Subject
from engine.tasks.texts import Encoder, encoder_of, load_text

NOTHING = -100
"""The target beyond the end of a text."""


class Seq2SeqLogits(nn.Module):
    """Token ids and mask (N, S) and the tokens before each place (N, T) to logits (N, T, vocabulary), without a cache."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor, decoder_input_ids: Tensor) -> Tensor:
        found = self.model(input_ids=input_ids, attention_mask=attention_mask, decoder_input_ids=decoder_input_ids, use_cache=False)
        logits: Tensor = found.logits
        return logits


class Seq2Seq(item_tasks.ItemTask):
    """Token ids to logits (N, T, vocabulary), held against the tokens of the right text, int64 (N, T)."""

    name, item, unit, plural = "seq2seq", "text", "texts", "texts"
    metrics = (LOSS, EXACT)
    distribution = True

    def __init__(self, items: ItemData, tokenizer: Any) -> None:
        super().__init__(items)
        self._tokenizer = tokenizer

    def evaluator(self) -> TokenLosses:
        return TokenLosses()

    def scored(self, outputs: tuple[Tensor, ...], targets: Tensor) -> tuple[Tensor, ...]:
        return (outputs[0][targets != NOTHING],)

    def answers(self, outputs: tuple[Tensor, ...]) -> Tensor | None:
        return outputs[0].argmax(-1)

    def outputs(self, raw: Any) -> tuple[Tensor, ...]:
        return (raw,) if isinstance(raw, Tensor) else super().outputs(raw)

    def loss(self, raw: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(raw.flatten(0, 1), targets.flatten(), ignore_index=NOTHING)

    def check(self, outputs: tuple[Tensor, ...], batch: Batch, name: str) -> None:
        if outputs[0].dim() != 3 or outputs[0].shape[:2] != batch.targets.shape:
            raise EngineError(
                f"{name} returns {tuple(outputs[0].shape)} for targets {tuple(batch.targets.shape)}, not logits of each token"
            )

    def item_answers(self, raw: Any, batch: Batch) -> Sequence[ItemAnswer]:
        found = []
        for answers, targets in zip(raw.argmax(-1), batch.targets, strict=True):
            kept = targets != NOTHING
            words, wanted = (self._tokenizer.decode(ids[kept], skip_special_tokens=True) for ids in (answers, targets))
            found.append(ItemAnswer(words, wanted, float((answers[kept] == targets[kept]).all())))
        return found


class TokenLosses:
    """The negative log-likelihood of the right tokens, and the part of texts that greedy decoding makes exactly.

    The latter needs no decoding: as long as all tokens were right, greedy decoding reads what the right text begins with. It makes the
    right text exactly where the most likely token is right at every place, the end included.
    """

    pooled: ClassVar[Mapping[str, pooling.How]] = {"_rows": "sum"}

    def __init__(self) -> None:
        self._rows: list[Tensor] = []

    def update(self, raw: Tensor, targets: Tensor) -> None:
        kept = targets != NOTHING
        losses = F.cross_entropy(raw.double().transpose(1, 2), targets, ignore_index=NOTHING, reduction="none").sum(1)
        right = ((raw.argmax(-1) == targets) | ~kept).all(1)
        self._rows.append(torch.stack([losses, kept.sum(1).double(), right.double()], 1).cpu())

    @property
    def _items(self) -> Tensor:
        return torch.cat(self._rows)

    def compute(self) -> Mapping[str, MetricValue]:
        right, total = float(self._items[:, 2].sum()), len(self._items)
        half = wilson(right, total)
        exact = MetricValue(right / total, right / total - half, right / total + half, half)
        return {"loss": bootstrap(self._items, _loss), "exact match": exact}

    def details(self) -> dict[str, Any]:
        return {"tokens": int(self._items[:, 1].sum())}

    def difference_error(self, reference: TokenLosses) -> float | None:
        """The standard error of the difference in the loss."""
        return paired_error(self._items, reference._items, _loss)


def _loss(sums: Tensor) -> Tensor:
    return sums[:, 0] / sums[:, 1]


@dataclass(frozen=True, eq=False)
class EncodedPairs:
    """Sources and targets as a model reads them; the decoder reads the target one place further."""

    rows: ItemSplit
    encoder: Encoder
    start: int
    pad: int

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, places: Sequence[int]) -> Items:
        texts, wanted = self.rows.read(places)
        inputs = self.encoder(texts)
        found = self.encoder.tokenizer(
            text_target=list(wanted), padding=True, truncation=True, max_length=self.encoder.context, return_tensors="pt",
            return_attention_mask=True, return_token_type_ids=False,
        )  # fmt: skip
        ids, kept = found["input_ids"], found["attention_mask"].bool()
        before = torch.cat([torch.full((len(ids), 1), self.start), ids[:, :-1]], 1)
        return Items({**inputs, "decoder_input_ids": before}, ids.masked_fill(~kept, NOTHING))


def task_for(language: TextModel, items: ItemData, recipe: Recipe) -> Seq2Seq:
    """The task on ``items``, whose inputs and targets are texts. Raises EngineError for a model that does not say how its texts begin."""
    config = language.model.config
    start = config.decoder_start_token_id if config.decoder_start_token_id is not None else config.bos_token_id
    if start is None:
        raise EngineError(f"{language.name} does not say with which token its texts begin: add decoder_start_token_id to its config.json")
    encoder = replace(encoder_of(language, recipe), types=False)
    splits = {
        name: EncodedPairs(items.split(name), encoder, int(start), int(language.tokenizer.pad_token_id))
        for name in ("train", "validation", "test")
    }
    read = replace(items, **splits, about={**items.about, "context": encoder.context})  # type: ignore[arg-type]
    return Seq2Seq(read, language.tokenizer)


def load(recipe: Recipe, stop: StopToken, device: str) -> Generator[Event, None, Subject]:
    """The model and the pairs that ``recipe`` names. Raises UsageError or EngineError in one line for what does not fit."""
    return (yield from load_text(recipe, device, "seq2seq", Seq2Seq.name, made))


def made(language: TextModel, items: ItemData, recipe: Recipe) -> tuple[Seq2SeqLogits, Seq2Seq]:
    """The model as the task reads it, and the task."""
    return Seq2SeqLogits(language.model), task_for(language, items, recipe)
