"""A recipe's words to a language model and its text. Nothing is written before this has succeeded."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import torch

from engine.data.text.corpora import ENTRIES as TEXTS
from engine.data.text.encoded import SequenceData, load_text
from engine.data.text.sequences import HALVES
from engine.errors import UsageError
from engine.events.cancellation import StopToken
from engine.events.event import Event, Notice
from engine.models.recurrent import refuse_hidden_state
from engine.models.transformers_load import LanguageModel, folder_of, load_language, unread_language
from engine.recipe.recipe import DataPart, QatPart, Recipe
from engine.tasks.causal_lm import CausalLM, tokens
from engine.tasks.causal_lm_streamed import StreamedCausalLM, is_streamed
from engine.tasks.subject import Subject, fingerprint

TEXT = "python-docs"
WINDOWS = 128
# A small model has read its text often: fp32's answers teach more.
USUAL_QAT = {"distill": 1.0, "lr": 1e-3}


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


def qat_settled(part: QatPart) -> QatPart:
    """With what fine-tuning on text takes where nothing was said. The batch is known when the text is."""
    return QatPart.model_validate({**USUAL_QAT, **part.model_dump(exclude_unset=True)})


def load(recipe: Recipe, stop: StopToken, device: str) -> Generator[Event, None, Subject]:
    """The model and the text that ``recipe``, which is settled, names. Raises UsageError or EngineError in one line for whatever does
    not fit together."""
    import transformers

    _refuse(recipe)
    torch.manual_seed(recipe.seed)
    name = recipe.data.name
    is_text = not name.lower().endswith(".json")
    streamed, reader = is_streamed(recipe, folder_of(recipe.model)), None
    if streamed is None:
        language = load_language(recipe.model, text=is_text)
        refuse_hidden_state(language.model, recipe.model)
    else:
        shards, why = streamed
        language, reader = unread_language(recipe.model, shards, text=is_text)
        device = "cpu"
        yield Notice(why)
    window = language.window if name.lower().endswith(".json") else _window(recipe, language)
    text = load_text(name, language, stop, window)
    if isinstance(text, SequenceData):
        window = max(len(ids) for some in text.sequences.values() for ids in some)
    if reader is None:
        language.model.to(device)
    counts = ", ".join(f"{count:,} {split}" for split, count in tokens(text).items())
    for note in language.notes:
        yield Notice(f"{recipe.model}: {note}", "warning")
    yield Notice(f"{recipe.model}: {language.params:,} parameters, reads {language.context:,} tokens at most; windows of {window:,}")
    divided = f"; {HALVES}" if isinstance(text, SequenceData) else ""
    yield Notice(f"{name}: tokens: {counts}{divided}")
    task = (CausalLM if reader is None else StreamedCausalLM)(language, text, window, recipe.data.stride, device)
    digest = fingerprint(language.model) if reader is None else reader.shards.fingerprint()
    example = next(task.batches("train", batch=1, limit=1, seed=recipe.seed))
    environment = {"transformers": transformers.__version__, "weights": f"{language.source} {digest}"}
    lowering = "modules" if reader is None else "streamed"
    return Subject(language.model, task, example, device, language.source, digest, lowering, environment, language.path, reader)


def _refuse(recipe: Recipe) -> None:
    from engine.data.registry import ENTRIES as IMAGES

    part = recipe.data
    if part.name in IMAGES and part.name not in TEXTS:
        raise UsageError(f"{part.name} are images and {recipe.model} reads text: give --data {TEXT}, a text file or a folder of text")
    if part.name.lower().endswith(".json"):
        asked = {"data.context": part.context is not None, "data.stride": part.stride != DataPart().stride}
        for key in (key for key, given in asked.items() if given):
            raise UsageError(f"{key} cuts a text in windows, and {part.name} holds sequences that are read one by one: leave it out")
    if recipe.weights:
        raise UsageError(f"{recipe.model} brings its weights: leave --weights out, and give a folder as the model for others")


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
