"""Continue a text token by token, with a cache of keys and values."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from engine.errors import EngineError
from engine.events.cancellation import StopToken


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
            out = model(input_ids=given, past_key_values=past, use_cache=True)
        logits, past = out.logits[0, -1], out.past_key_values
        if not torch.isfinite(logits).all():
            raise EngineError("the model's output is NaN or infinite: check the weights")
        token = int(logits.argmax())
        given = torch.tensor([[token]], device=ids.device)
        yield token
