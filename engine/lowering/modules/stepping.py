"""A decoder as a function of tokens and of what it remembers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

# ids (1, T) and a cache, None for none, to the logits (1, T, vocabulary) and the cache that goes on.
Step = Callable[[Tensor, Any], tuple[Tensor, Any]]


def of_model(model: Any) -> Step:
    """A transformers model as a step."""

    def step(ids: Tensor, cache: Any) -> tuple[Tensor, Any]:
        out = model(input_ids=ids, past_key_values=cache, use_cache=True)
        return out.logits, out.past_key_values

    return step


def last(step: Step) -> Callable[[Tensor, Any], tuple[Tensor, Any]]:
    """The same with the logits of the last token alone, (vocabulary,)."""

    def only(ids: Tensor, cache: Any) -> tuple[Tensor, Any]:
        logits, cache = step(ids, cache)
        return logits[0, -1], cache

    return only
