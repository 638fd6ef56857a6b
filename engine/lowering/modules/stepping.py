"""A decoder as a function of tokens and of what it remembers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from engine.tasks.generation import proceed

# ids (1, T) and a cache, None for none, to the logits (1, T, vocabulary) and the cache that goes on.
Step = Callable[[Tensor, Any], tuple[Tensor, Any]]


def of_model(model: Any) -> Step:
    """A transformers model as a step; one without a cache reads the whole text again."""

    def step(ids: Tensor, cache: Any) -> tuple[Tensor, Any]:
        logits, held = proceed(model, ids, cache)
        return logits[:, -ids.shape[1] :], held

    return step


def last(step: Step) -> Callable[[Tensor, Any], tuple[Tensor, Any]]:
    """The same with the logits of the last token alone, (vocabulary,)."""

    def only(ids: Tensor, cache: Any) -> tuple[Tensor, Any]:
        logits, cache = step(ids, cache)
        return logits[0, -1], cache

    return only
