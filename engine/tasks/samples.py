"""What forms of a language model say after the same words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from engine.data.text.encoded import SequenceData
from engine.events.cancellation import StopToken
from engine.events.event import Samples
from engine.runs.language_loading import LoadedLanguage
from engine.tasks.generation import continuation

PROMPTS, WORDS, NEW = 2, 24, 40


def sampled(loaded: LoadedLanguage, forms: Mapping[str, Any], stop: StopToken) -> tuple[Samples, ...]:
    """Beginnings of the test text, each continued by each form with the likeliest token. Raises Cancelled on stop."""
    found = []
    for ids in _beginnings(loaded):
        texts = {}
        for name, model in forms.items():
            new = list(continuation(model, ids.to(loaded.device), NEW, stop=stop, context=loaded.language.context))
            texts[name] = _text(loaded, new)
        found.append(Samples(_text(loaded, ids.tolist()), texts))
    return tuple(found)


def _beginnings(loaded: LoadedLanguage) -> list[Any]:
    if isinstance(loaded.data, SequenceData):
        longest = sorted(loaded.data.sequences["test"], key=len, reverse=True)
        return [ids[: max(len(ids) // 3, 1)] for ids in longest[:PROMPTS]]
    stream = loaded.data.streams["test"]
    step = len(stream) // PROMPTS
    return [stream[i * step : i * step + min(WORDS, loaded.context // 2)] for i in range(PROMPTS)]


def _text(loaded: LoadedLanguage, ids: list[int]) -> str:
    tokenizer = loaded.language.tokenizer
    if tokenizer is None:
        return " ".join(map(str, ids))
    text: str = tokenizer.decode(ids, clean_up_tokenization_spaces=False)
    return text
