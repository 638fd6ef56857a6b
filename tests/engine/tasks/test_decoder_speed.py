"""Tokens a second, with a clock that the steps themselves move."""

import pytest
import torch
from small_decoders import VOCABULARY, small
from tiny_language import finished

from engine.errors import Cancelled
from engine.events.cancellation import StopToken
from engine.tasks.decode_timing import Lengths, Speed, step_of, tokens_per_second


class Clock(StopToken):
    def __init__(self):
        super().__init__()
        self.now = 0.0

    def clock(self):
        return self.now


def model_of(clock, prompt, token, seen):
    """A step that takes ``prompt`` seconds for more than one token at once, else ``token``; each seventh call waits a second more."""

    def step(ids, past):
        seen.append((ids.shape[1], past))
        clock.now += (prompt if ids.shape[1] > 1 else token) + (len(seen) % 7 == 0)
        return torch.nn.functional.one_hot(torch.tensor(3), 9).float(), (past or 0) + ids.shape[1]

    return step


def test_reading_and_writing_are_told_apart_and_stalls_are_in_the_slowest_alone():
    clock, first, second = Clock(), [], []
    steps = {"fp32": model_of(clock, 0.5, 0.1, first), "int8": model_of(clock, 0.25, 0.02, second)}
    lengths = Lengths(50, 4, 9)
    found = finished(tokens_per_second(steps, 9, lengths, clock, rounds=3))
    assert found["fp32"] == Speed(*map(pytest.approx, (100, 10, 50, 9, 4, 1500, 1100)))
    assert found["int8"] == Speed(*map(pytest.approx, (200, 50, 50, 9, 4, 1250, 1020)))
    # Every token after the beginning meets a cache that has grown by one.
    assert first[-10:] == [(4, None), *((1, n) for n in range(4, 13))]


def test_it_stops_between_tokens():
    clock, seen = Clock(), []
    run = tokens_per_second({"fp32": model_of(clock, 0.5, 0.1, seen)}, 9, Lengths(50, 4, 9), clock)
    next(run)
    count = len(seen)
    clock.set()
    with pytest.raises(Cancelled):
        next(run)
    assert len(seen) == count


@pytest.mark.parametrize(("context", "expected"), [(2048, Lengths(512, 16, 32)), (32, Lengths(32, 16, 16)), (2, Lengths(2, 1, 1))])
def test_lengths_stay_within_the_context(context, expected):
    assert Lengths().within(context) == expected


def test_a_transformers_model_as_a_step():
    model, ids = small(), torch.tensor([[5, 9, 4, 11]])
    step = step_of(model)
    with torch.inference_mode():
        logits, past = step(ids[:, :3], None)
        again, _ = step(ids[:, 3:], past)
        whole = model(input_ids=ids).logits[0]
    assert logits.shape == (VOCABULARY,)
    torch.testing.assert_close(torch.stack([logits, again]), whole[2:], rtol=1e-4, atol=1e-4)
