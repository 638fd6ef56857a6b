"""What forms of a language model say after the same words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from engine.data.text.encoded import SequenceData
from engine.events.cancellation import StopToken
from engine.events.event import Samples
from engine.tasks.causal_lm import CausalLM
from engine.tasks.generation import continuation

PROMPTS, WORDS, NEW = 2, 24, 40


def sampled(task: CausalLM, models: Mapping[str, Any], stop: StopToken) -> tuple[Samples, ...]:
    """Beginnings of the test text, each continued by each form with the likeliest token. Raises Cancelled on stop."""
    found = []
    for ids in _beginnings(task):
        texts = {}
        for name, model in models.items():
            new = list(continuation(model, ids.to(task.device), NEW, stop=stop, context=task.language.context))
            texts[name] = _text(task, new)
        found.append(Samples(_text(task, ids.tolist()), texts))
    return tuple(found)


def _beginnings(task: CausalLM) -> list[Any]:
    if isinstance(task.text, SequenceData):
        longest = sorted(task.text.sequences["test"], key=len, reverse=True)
        return [ids[: max(len(ids) // 3, 1)] for ids in longest[:PROMPTS]]
    stream = task.text.streams["test"]
    step = len(stream) // PROMPTS
    return [stream[i * step : i * step + min(WORDS, task.context // 2)] for i in range(PROMPTS)]


def _text(task: CausalLM, ids: list[int]) -> str:
    tokenizer = task.language.tokenizer
    if tokenizer is None:
        return " ".join(map(str, ids))
    text: str = tokenizer.decode(ids, clean_up_tokenization_spaces=False)
    return text
