"""Perplexities and distances between two forms, against plain float64."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import tiny_language
import torch
from torch import Tensor

from engine.errors import Cancelled, EngineError
from engine.events.cancellation import StopToken
from engine.tasks.base import Batch, Forward, forward_of
from engine.tasks.causal_lm import CausalLM
from engine.tasks.evaluate import REFERENCE, SplitResult, evaluate
from engine.tasks.metrics import PERPLEXITY
from engine.tasks.perplexity import parts_of


def form(seed: int) -> Forward:
    return forward_of(tiny_language.gpt2(seed=seed))


def stream(tokens: int) -> Tensor:
    return torch.randint(tiny_language.ROWS, (tokens,), generator=torch.Generator().manual_seed(1))


def evaluated(task: CausalLM, first: Forward, second: Forward, stop: StopToken | None = None) -> tuple[SplitResult, SplitResult]:
    """fp32 and the other form on the test split."""
    found = tiny_language.finished(evaluate(task, {"other": second}, first, "test", batch=1, stop=stop or StopToken()))
    return found[REFERENCE], found["other"]


def judged(ids: Tensor | tuple[Tensor, ...], stride: int = 16) -> tuple[SplitResult, SplitResult]:
    return evaluated(tiny_language.task(ids, stride), form(0), form(1))


def test_every_figure_is_that_of_a_plain_computation() -> None:
    ids = stream(81)
    fp32, other = judged(ids)
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
    assert count == 80 == other.count == other.details["perplexity"]["tokens"]
    assert fp32.value == pytest.approx(math.exp(nll[0] / count), rel=1e-5)
    assert other.value == pytest.approx(math.exp(nll[1] / count), rel=1e-5)
    close = other.closeness
    assert close.mse == pytest.approx(moved / count / tiny_language.ROWS, rel=1e-4) and close.agreement == same / count
    assert close.sqnr_db == pytest.approx(10 * math.log10(power / moved), abs=1e-3)
    assert close.divergence == pytest.approx(divergence / count, rel=1e-4)
    assert PERPLEXITY.drop(fp32.value, other.value) == pytest.approx(math.exp((nll[1] - nll[0]) / count) - 1, rel=1e-4)


def test_the_protocol_is_the_one_that_was_measured_by() -> None:
    ids, context = stream(81), tiny_language.CONTEXT
    told = [(how["protocol"], how["stride"]) for stride in (16, 32, 512) for how in (judged(ids, stride)[1].details["perplexity"],)]
    assert told == [("sliding window", 16), *[("non-overlapping windows", context)] * 2]
    how = judged((ids[:9],))[1].details["perplexity"]
    assert (how["protocol"], how["stride"], how["context"]) == ("sequences", None, 9)


def test_the_same_form_is_exactly_the_same() -> None:
    fp32, other = evaluated(tiny_language.task(stream(40), tiny_language.CONTEXT), form(0), form(0))
    assert other.value == fp32.value and other.closeness.sqnr_db == math.inf and other.closeness.agreement == 1


def test_what_is_wrong_is_one_line_and_stop_stops() -> None:
    with pytest.raises(EngineError, match="the text has 5 tokens, fewer than the context of 32"):
        parts_of(stream(5), 32, 16)
    stop = StopToken()
    stop.set()
    task = tiny_language.task((stream(9),))
    with pytest.raises(Cancelled):
        evaluated(task, form(0), form(0), stop)

    def broken(batch: Batch) -> SimpleNamespace:
        return SimpleNamespace(logits=torch.full((*batch.kwargs["input_ids"].shape, tiny_language.ROWS), math.nan))

    with pytest.raises(EngineError, match="NaN or infinite"):
        evaluated(task, form(0), broken)
    with pytest.raises(EngineError, match="fp32 model gives NaN or infinity"):
        evaluated(task, broken, form(0))
