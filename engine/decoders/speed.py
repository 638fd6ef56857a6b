"""Tokens a second of a decoder with a cache: reading a prompt and going on from it, measured apart, at batch 1."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from engine.cancel import StopToken
from engine.errors import EngineError

PROMPT, NEW, REPEATS = 128, 32, 3
# ids (1, T) and a cache, None for none, to the logits (1, T, vocabulary) and the cache that goes on.
Step = Callable[[Tensor, Any], tuple[Tensor, Any]]


@dataclass(frozen=True)
class Speed:
    """``prefill``: tokens a second of reading ``prompt`` tokens without a cache. ``decode``: of ``new`` tokens one by one behind them,
    each the likeliest after the one before. Medians over ``repeats``, after one that does not count."""

    prefill: float
    decode: float
    prompt: int
    new: int
    repeats: int

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def speeds(steps: Mapping[str, Step], ids: Tensor, stop: StopToken, new: int = NEW, repeats: int = REPEATS) -> dict[str, Speed]:
    """Of several forms in turns, so that they compare. ``ids`` (T,) are the prompt. Raises EngineError for an empty one, Cancelled on
    stop."""
    if not len(ids) or new < 1 or repeats < 1:
        raise EngineError("speed is measured on a prompt of one token or more, with one new token or more")
    spent: dict[str, list[tuple[float, float]]] = {name: [] for name in steps}
    for turn in range(repeats + 1):
        for name, step in steps.items():
            found = _once(step, ids[None], new, stop)
            if turn:
                spent[name].append(found)
    made = {}
    for name, times in spent.items():
        first, later = (statistics.median(pair[i] for pair in times) for i in (0, 1))
        made[name] = Speed(round(len(ids) / first, 2), round(new / later, 2), len(ids), new, repeats)
    return made


def _once(step: Step, ids: Tensor, new: int, stop: StopToken) -> tuple[float, float]:
    """Seconds of reading ``ids``, and of ``new`` tokens."""
    with torch.inference_mode():
        stop.check()
        start = time.perf_counter()
        logits, cache = step(ids, None)
        read = time.perf_counter()
        for _ in range(new):
            stop.check()
            logits, cache = step(logits[:, -1:].argmax(-1), cache)
        return read - start, time.perf_counter() - read


def of_model(model: Any) -> Step:
    """A transformers model as a step."""

    def step(ids: Tensor, cache: Any) -> tuple[Tensor, Any]:
        out = model(input_ids=ids, past_key_values=cache, use_cache=True)
        return out.logits, out.past_key_values

    return step


def as_model(step: Step) -> Any:
    """A step as ``engine.language.generate.continuation`` takes models."""

    def model(input_ids: Tensor, past_key_values: Any = None, use_cache: bool = True) -> Any:
        logits, cache = step(input_ids, past_key_values)
        return SimpleNamespace(logits=logits, past_key_values=cache)

    return model
