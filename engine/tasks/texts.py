"""Texts as the token ids that a model reads: what the tasks on text share."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from engine.data.items import ItemData, Items, ItemSplit
from engine.errors import UsageError
from engine.events.event import Event, Notice
from engine.models import custom
from engine.models.text_models import LONGEST, Head, TextModel, load_text_model
from engine.recipe.recipe import Recipe
from engine.tasks.items import ItemTask, data_of, subject_of
from engine.tasks.subject import Subject

# Texts of the test split that are looked at for those that are cut.
_LOOKED_AT = 2000


@dataclass(frozen=True)
class Encoder:
    """``tokenizer`` is one of transformers; texts are cut at ``context`` tokens. ``types`` says that the model tells the two texts of a
    pair apart by token types."""

    tokenizer: Any
    context: int
    types: bool = False

    def __call__(self, texts: Sequence[tuple[str, ...]]) -> dict[str, Tensor]:
        """Token ids and mask (N, longest), int64."""
        columns = [list(column) for column in zip(*texts, strict=True)]
        found = self.tokenizer(
            *columns, padding=True, truncation=True, max_length=self.context, return_tensors="pt", return_attention_mask=True,
            return_token_type_ids=self.types and len(columns) > 1,
        )  # fmt: skip
        return {name: found[name] for name in ("input_ids", "attention_mask", "token_type_ids") if name in found}

    def length(self, texts: tuple[str, ...]) -> int:
        """Tokens of a text, or of a pair, uncut."""
        return len(self.tokenizer(*texts, verbose=False)["input_ids"])


@dataclass(frozen=True, eq=False)
class EncodedTexts:
    """A split of texts as a model reads them; ``targets`` makes what the outputs are held against, given the encoded batch."""

    rows: ItemSplit
    encoder: Encoder
    targets: Callable[[Sequence[Any]], Any]

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, places: Sequence[int]) -> Items:
        texts, wanted = self.rows.read(places)
        return Items(self.encoder(texts), self.targets(wanted))


def encoder_of(language: TextModel, recipe: Recipe) -> Encoder:
    """Raises UsageError for a ``data.context`` that the model does not read."""
    asked = recipe.data.context
    if asked is not None and not 4 <= asked <= language.context:
        raise UsageError(f"data.context is {asked}: {language.name} reads 4 to {language.context:,} tokens")
    types = int(getattr(language.model.config, "type_vocab_size", 0) or 0) > 1
    return Encoder(language.tokenizer, asked or min(language.context, LONGEST), types)


def encoded(items: ItemData, encoder: Encoder, targets: Callable[[Sequence[Any]], Any], about: Mapping[str, Any]) -> ItemData:
    """``items``, whose inputs are texts, as a model reads them."""
    train, validation, test = (EncodedTexts(split, encoder, targets) for split in (items.train, items.validation, items.test))
    looked = range(min(len(items.test), _LOOKED_AT))
    cut = sum(encoder.length(texts) > encoder.context for texts in items.test.read(list(looked)).inputs)
    notes = (*items.notes, *([f"{cut:,} of {len(looked):,} test texts are cut at {encoder.context} tokens"] if cut else []))
    about = {**items.about, "context": encoder.context, **about}
    return replace(items, train=train, validation=validation, test=test, notes=notes, about=about)


Made = Callable[[TextModel, ItemData, Recipe], tuple[nn.Module, ItemTask]]
"""Of a model and the data of its task the module that is measured, and the task."""


def load_text(recipe: Recipe, device: str, head: Head, task: str, make: Made) -> Generator[Event, None, Subject]:
    """The ``Subject`` of ``task`` on texts; ``head`` as in ``load_text_model``. Raises UsageError for what a model of transformers has no
    use for, and UsageError or EngineError in one line for what does not fit."""
    refuse(recipe)
    torch.manual_seed(recipe.seed)
    language = load_text_model(recipe.model, head, task)
    module, made = make(language, data_of(recipe, task), recipe)
    for note in language.notes:
        yield Notice(f"{recipe.model}: {note}", "warning")
    return (yield from subject_of(module, made, recipe.model, f"from the {language.source}", device))


def refuse(recipe: Recipe) -> None:
    """Raises UsageError for what a model of transformers has no use for."""
    if custom.is_custom(recipe.model):
        raise UsageError(
            f"{recipe.model} is a factory, which brings no tokenizer: give a folder as save_pretrained writes it, or your own task"
        )
    if recipe.weights:
        raise UsageError(f"{recipe.model} brings its weights: leave --weights out, and give a folder as the model for others")
