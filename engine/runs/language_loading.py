"""A recipe's words to a language model and its text. Nothing is written before this has succeeded."""

from __future__ import annotations

import hashlib
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from engine.data.text.corpora import ENTRIES as TEXTS
from engine.data.text.documents import Split
from engine.data.text.encoded import SequenceData, TextData, load_text
from engine.errors import EngineError, UsageError
from engine.events.cancellation import StopToken
from engine.events.event import Event, LayerRow, Notice
from engine.export.compressed_tensors import refuse
from engine.export.decoder_formats import find
from engine.export.onnx.architecture import architecture
from engine.lowering.modules.recurrent import refuse_recurrent
from engine.models.anatomy import anatomy, kind_of, linears
from engine.models.transformers_load import LanguageModel, load_language
from engine.planning.matrices import plan
from engine.recipe.recipe import DataPart, Recipe
from engine.tasks.perplexity import Part, parts_of
from engine.training.settings import qat_settled

TEXT = "python-docs"
WINDOWS = 128
# Windows of the validation split that decide; the test split is measured whole.
DECIDING = 16
# Tokens in a batch: their logits are to fit in memory beside the model.
TOKENS = 2048


@dataclass(frozen=True)
class LoadedLanguage:
    """``context`` is the length of a window in tokens; ``fingerprint`` a hash of the weights; ``device`` where the model is, and what is
    read from the text."""

    language: LanguageModel
    data: TextData | SequenceData
    context: int
    fingerprint: str
    device: str = "cpu"

    @property
    def batch(self) -> int:
        """Windows that are read at a time."""
        return max(TOKENS // self.context, 1)

    def calibration(self, count: int, seed: int) -> list[Tensor]:
        """Windows of the training split, 1-D each: ``count`` of them, fewer where there are no more."""
        if isinstance(self.data, SequenceData):
            return [ids.to(self.device) for ids in self.data.sequences["train"][:count] if len(ids) > 1]
        return [ids.to(self.device) for ids in self.data.windows("train", self.context, count, seed)]

    def parts(self, split: Split, stride: int, limit: int | None = None) -> list[Part]:
        """What of a split is scored, and from where; ``limit`` is in tokens. Raises EngineError for a text that is too short."""
        if isinstance(self.data, SequenceData):
            found = [ids for ids in self.data.sequences[split] if len(ids) > 1]
            return [(ids.to(self.device), 1) for ids in found][: None if limit is None else max(limit // self.context, 1)]
        return parts_of(self.data.streams[split][:limit].to(self.device), self.context, stride)

    def stride(self, asked: int) -> int | None:
        """Tokens from one window to the next: never more than a window has; None of sequences."""
        return None if isinstance(self.data, SequenceData) else min(asked, self.context)


def settled(recipe: Recipe) -> Recipe:
    """The recipe with what a language model takes where nothing was said: text, and a number of windows."""
    part, given = recipe.data, recipe.data.model_fields_set
    changed: dict[str, Any] = {}
    if "name" not in given:
        changed["name"] = TEXT
    if "calibration" not in given:
        changed["calibration"] = WINDOWS
    # Made anew, so that what is settled counts as said.
    fields = {**part.model_dump(), **changed}
    return recipe.model_copy(update={"data": DataPart.model_validate(fields), "qat": qat_settled(recipe.qat)})


def load(recipe: Recipe, stop: StopToken, device: str = "cpu") -> Generator[Event, None, LoadedLanguage]:
    """``recipe`` is settled. Raises UsageError or EngineError in one line for whatever does not fit together."""
    _refuse(recipe)
    torch.manual_seed(recipe.seed)
    name = recipe.data.name
    language = load_language(recipe.model, text=not name.lower().endswith(".json"))
    refuse_recurrent(language.model, recipe.model)
    _refuse_export(recipe, language)
    window = language.window if name.lower().endswith(".json") else _window(recipe, language)
    data = load_text(name, language, stop, window)
    if isinstance(data, SequenceData):
        window = max(len(ids) for some in data.sequences.values() for ids in some)
    loaded = LoadedLanguage(language, data, window, _fingerprint(language), device)
    language.model.to(device)
    counts = ", ".join(f"{_tokens(data, split):,} {split}" for split in ("train", "validation", "test"))
    yield Notice(f"{recipe.model}: {language.params:,} parameters, reads {language.context:,} tokens at most; windows of {window:,}")
    yield Notice(f"{name}: tokens: {counts}")
    return loaded


def _refuse(recipe: Recipe) -> None:
    from engine.data.registry import ENTRIES as IMAGES

    part = recipe.data
    if part.name in IMAGES and part.name not in TEXTS:
        raise UsageError(f"{part.name} are images and {recipe.model} reads text: give --data {TEXT}, a text file or a folder of text")
    for name in recipe.export:
        find(name)
    if part.name.lower().endswith(".json"):
        asked = {"data.context": part.context is not None, "data.stride": part.stride != DataPart().stride}
        for key in (key for key, given in asked.items() if given):
            raise UsageError(f"{key} cuts a text in windows, and {part.name} holds sequences that are read one by one: leave it out")
    if recipe.weights:
        raise UsageError(f"{recipe.model} brings its weights: leave --weights out, and give a folder as the model for others")


def _refuse_export(recipe: Recipe, language: LanguageModel) -> None:
    """What is known before any work about an export that cannot be made."""
    other = next((path for path, module in linears(language.model) if kind_of(module) == "Conv1D"), None)
    if other is not None and "compressed-tensors" in recipe.export:
        raise UsageError(f"export to compressed-tensors: its readers pass over transformers' Conv1D, which {other} is: give onnx instead")
    if "compressed-tensors" in recipe.export:
        parts = anatomy(language.model)
        made = plan(language.model, parts, recipe.preset, recipe.layer_rules(), {}, lambda spec, kind, shape, plain: "")
        if refused := refusal(recipe, made.layers):
            raise UsageError(refused)
    if "onnx" in recipe.export:
        try:
            architecture(language.model)
        except EngineError as error:
            raise UsageError(f"export to onnx: {error}: leave it out") from error


def refusal(recipe: Recipe, layers: Sequence[LayerRow]) -> str:
    """Why an export of the recipe could not be made of what ``layers`` become, in a line; empty where all can."""
    try:
        if "compressed-tensors" in recipe.export:
            refuse(layers)
    except EngineError as error:
        return f"export to compressed-tensors: {error}"
    return ""


def _window(recipe: Recipe, language: LanguageModel) -> int:
    """Tokens in a window of text."""
    part = recipe.data
    if part.context is not None and not 2 <= part.context <= language.context:
        raise UsageError(f"data.context is {part.context}: {recipe.model} reads 2 to {language.context:,} tokens")
    window = part.context or language.window
    if part.stride > window and part.stride != DataPart().stride:
        raise UsageError(f"data.stride is {part.stride:,}: a window has {window:,} tokens, and a longer step would leave text out")
    if part.limit is not None and part.limit < window:
        raise UsageError(f"the limit is {part.limit:,} tokens of the test split: give {window:,} or more, one window")
    return window


def _tokens(data: TextData | SequenceData, split: Split) -> int:
    if isinstance(data, SequenceData):
        return sum(len(ids) for ids in data.sequences[split])
    return len(data.streams[split])


def tokens(data: TextData | SequenceData) -> dict[str, int]:
    """Tokens of each split."""
    found: Sequence[Split] = ("train", "validation", "test")
    return {split: _tokens(data, split) for split in found}


def _fingerprint(language: LanguageModel) -> str:
    digest = hashlib.sha256()
    for name, tensor in language.model.state_dict().items():
        digest.update(name.encode() + tensor.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
