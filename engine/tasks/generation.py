"""Continue a text token by token, with a cache of keys and values where the model has one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from engine.errors import EngineError
from engine.events.cancellation import StopToken
from engine.models.recurrent import state_of


@dataclass(frozen=True)
class Reread:
    """In the place of a cache, of a model that has none: the token ids (N, T) that it has read, and reads again."""

    ids: Tensor


@dataclass(frozen=True)
class Remembered:
    """The state of a recurrent model, and the argument under which it is given back."""

    name: str
    state: Any


def proceed(model: Any, ids: Tensor, past: Any, **options: Any) -> tuple[Tensor, Any]:
    """The logits (N, T, vocabulary) of ``ids`` that follow those of ``past``, and what the next call is to be given as ``past``: the
    cache, a recurrent model's ``Remembered`` or ``Reread``. ``options`` go to the transformers model."""
    if isinstance(past, Reread):
        ids, past = torch.cat([past.ids, ids], 1), None
    name, held = (past.name, past.state) if isinstance(past, Remembered) else ("past_key_values", past)
    out = model(input_ids=ids, use_cache=True, **({} if held is None else {name: held}), **options)
    found = state_of(out)
    if found is None:
        return out.logits, Reread(ids)
    name, held = found
    return out.logits, held if name == "past_key_values" else Remembered(name, held)


def continuation(model: Any, ids: Tensor, count: int, *, stop: StopToken, context: int | None = None) -> Iterator[int]:
    """The likeliest token ids after ``ids`` (tokens,), one by one: ``count`` of them, fewer where the ``context`` is full.

    ``model`` is a transformers model, or one quantized in place. Raises EngineError for an empty or overlong beginning and where
    the logits are not finite, Cancelled on stop.
    """
    if not len(ids):
        raise EngineError("there is no text to continue: give one token or more")
    if context is not None and len(ids) > context:
        raise EngineError(f"the text to continue has {len(ids):,} tokens, more than the context of {context:,}: give a shorter one")
    room = count if context is None else min(count, context - len(ids))
    given, past = ids[None], None
    for _ in range(room):
        stop.check()
        with torch.inference_mode():
            found, past = proceed(model, given, past)
        logits = found[0, -1]
        if not torch.isfinite(logits).all():
            raise EngineError("the model's output is NaN or infinite: check the weights")
        token = int(logits.argmax())
        given = torch.tensor([[token]], device=ids.device)
        yield token
