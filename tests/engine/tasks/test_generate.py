"""Generation with a cache gives what the whole text gives without one."""

from __future__ import annotations

import pytest
import tiny_language
import torch

from engine.errors import Cancelled, EngineError
from engine.events.cancellation import StopToken
from engine.tasks.generation import continuation

IDS = torch.tensor([3, 1, 4, 1, 5])


def test_greedy_tokens_are_those_of_a_model_without_a_cache() -> None:
    model = tiny_language.gpt2()
    got = list(continuation(model, IDS, 12, stop=StopToken()))
    ids = IDS
    for _ in range(12):
        ids = torch.cat([ids, model(input_ids=ids[None], use_cache=False).logits[0, -1].argmax()[None]])
    assert got == ids[5:].tolist() and len(set(got)) > 3


def test_it_ends_at_a_full_context_and_on_stop() -> None:
    model, stop = tiny_language.gpt2(), StopToken()
    greedy = list(continuation(model, IDS, 6, stop=stop))
    assert len(list(continuation(model, IDS, 100, stop=stop, context=32))) == 27
    steps = continuation(model, IDS, 6, stop=stop)
    assert next(steps) == greedy[0]
    stop.set()
    with pytest.raises(Cancelled):
        next(steps)


def test_a_beginning_must_have_tokens_and_fit() -> None:
    for ids in (IDS[:0], torch.ones(40, dtype=torch.int64)):
        with pytest.raises(EngineError, match="token"):
            next(continuation(tiny_language.gpt2(), ids, 1, stop=StopToken(), context=32))
