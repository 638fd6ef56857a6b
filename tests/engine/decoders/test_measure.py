"""Perplexities and distances between two forms, against plain float64."""

from __future__ import annotations

import math

import pytest
import tiny_language
import torch
from torch import Tensor

from engine.errors import Cancelled, EngineError
from engine.events.cancellation import StopToken
from engine.tasks.language_evaluation import Judged, against
from engine.tasks.perplexity import parts_of


def logits(seed: int) -> object:
    model = tiny_language.gpt2(seed=seed)
    return lambda ids: model(input_ids=ids).logits


def stream(tokens: int) -> Tensor:
    return torch.randint(tiny_language.ROWS, (tokens,), generator=torch.Generator().manual_seed(1))


def judged(ids: Tensor, stride: int = 16) -> Judged:
    parts = parts_of(ids, tiny_language.CONTEXT, stride)
    return tiny_language.finished(against(logits(0), logits(1), parts, stride, StopToken()))  # type: ignore[arg-type]


def test_every_figure_is_that_of_a_plain_computation() -> None:
    ids = stream(81)
    found = judged(ids)
    nll, moved, power, same, divergence = [0.0, 0.0], 0.0, 0.0, 0, 0.0
    count = 0
    for part, first in parts_of(ids, tiny_language.CONTEXT, 16):
        a, b = (tiny_language.gpt2(seed=s).double()(input_ids=part[None]).logits[0, first - 1 : -1].detach() for s in (0, 1))
        p, q = a.softmax(-1), b.softmax(-1)
        wanted = part[first:]
        nll = [nll[i] - float(d[torch.arange(len(wanted)), wanted].log().sum()) for i, d in enumerate((p, q))]
        moved, power = moved + float((a - b).square().sum()), power + float(a.square().sum())
        same += int((a.argmax(-1) == b.argmax(-1)).sum())
        divergence += float((p * (p / q).log()).sum())
        count += len(wanted)
    assert count == 80 == found.it.tokens
    assert found.fp32.value == pytest.approx(math.exp(nll[0] / count), rel=1e-5)
    assert found.it.value == pytest.approx(math.exp(nll[1] / count), rel=1e-5)
    close = found.closeness
    assert close.mse == pytest.approx(moved / count / tiny_language.ROWS, rel=1e-4) and close.agreement == same / count
    assert close.sqnr_db == pytest.approx(10 * math.log10(power / moved), abs=1e-3)
    assert close.divergence == pytest.approx(divergence / count, rel=1e-4)
    assert found.rise == pytest.approx(found.it.value / found.fp32.value - 1)


def test_the_protocol_is_the_one_that_was_measured_by() -> None:
    ids, context = stream(81), tiny_language.CONTEXT
    told = [(found.protocol, found.stride) for stride in (16, 32, 512) for found in (judged(ids, stride).it,)]
    assert told == [("sliding window", 16), *[("non-overlapping windows", context)] * 2]
    sequences = tiny_language.finished(against(logits(0), logits(1), [(ids[:9], 1)], None, StopToken()))  # type: ignore[arg-type]
    assert (sequences.it.protocol, sequences.it.stride, sequences.it.context) == ("sequences", None, 9)


def test_the_same_form_is_exactly_the_same() -> None:
    same = logits(0)
    parts = parts_of(stream(40), tiny_language.CONTEXT, None)
    found = tiny_language.finished(against(same, same, parts, None, StopToken()))  # type: ignore[arg-type]
    assert found.rise == 0 and found.closeness.sqnr_db == math.inf and found.closeness.agreement == 1


def test_what_is_wrong_is_one_line_and_stop_stops() -> None:
    with pytest.raises(EngineError, match="the text has 5 tokens, fewer than the context of 32"):
        parts_of(stream(5), 32, 16)
    stop = StopToken()
    stop.set()
    with pytest.raises(Cancelled):
        tiny_language.finished(against(logits(0), logits(0), [(stream(9), 1)], None, stop))  # type: ignore[arg-type]
    with pytest.raises(EngineError, match="NaN or infinite"):
        tiny_language.finished(
            against(logits(0), lambda ids: torch.full((1, ids.shape[1], tiny_language.ROWS), math.nan), [(stream(9), 1)], None, StopToken())  # type: ignore[arg-type]
        )
