"""Continue a text token by token, with a cache of keys and values."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from engine.cancel import StopToken
from engine.errors import EngineError


def continuation(
    model: Any, ids: Tensor, count: int, *, stop: StopToken, temperature: float = 0.0, top_k: int = 40, seed: int = 0,
    end: int | None = None, context: int | None = None,
) -> Iterator[int]:  # fmt: skip
    """The next token ids after ``ids`` (tokens,), one by one: ``count`` of them, fewer where ``end`` comes or the ``context`` is full.

    ``temperature`` 0 takes the likeliest; above it a token is drawn from the ``top_k`` likeliest (0: from all), the same for the
    same ``seed``. ``model`` is a transformers model, or one quantized in place. Raises EngineError for an empty or overlong
    beginning and where the logits are not finite, Cancelled on stop.
    """
    if not len(ids):
        raise EngineError("there is no text to continue: give one token or more")
    if context is not None and len(ids) > context:
        raise EngineError(f"the text to continue has {len(ids):,} tokens, more than the context of {context:,}: give a shorter one")
    draw = torch.Generator().manual_seed(seed)
    room = count if context is None else min(count, context - len(ids))
    given, past = ids[None], None
    for _ in range(room):
        stop.check()
        with torch.inference_mode():
            out = model(input_ids=given, past_key_values=past, use_cache=True)
        token = _choose(out.logits[0, -1].float().cpu(), temperature, top_k, draw)
        past = out.past_key_values
        given = torch.tensor([[token]], device=ids.device)
        yield token
        if token == end:
            return


def _choose(logits: Tensor, temperature: float, top_k: int, draw: torch.Generator) -> int:
    if not torch.isfinite(logits).all():
        raise EngineError("the model's output is NaN or infinite: check the weights")
    if temperature <= 0:
        return int(logits.argmax())
    values, places = logits.topk(min(top_k, len(logits)) if top_k else len(logits))
    return int(places[torch.multinomial((values / temperature).softmax(0), 1, generator=draw)])
