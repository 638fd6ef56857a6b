"""Perplexity against a plain computation in float64, and what its windows read and score."""

from __future__ import annotations

import math

import pytest
import tiny_language
import torch
from torch import Tensor

from engine.errors import Cancelled, EngineError
from engine.events.cancellation import StopToken
from engine.events.event import Progress
from engine.tasks.perplexity import Perplexity, sequence_perplexity, stream_perplexity, windows


def stream(tokens: int, seed: int = 0) -> Tensor:
    return torch.randint(tiny_language.ROWS, (tokens,), generator=torch.Generator().manual_seed(seed))


def plain(ids: Tensor, context: int, stride: int) -> tuple[float, int]:
    """The Hugging Face loop, one window at a time, in float64: mean negative log-likelihood and how many were scored."""
    model = tiny_language.gpt2().double()
    total, scored, before = 0.0, 0, 0
    for begin in range(0, len(ids), stride):
        end = min(begin + context, len(ids))
        with torch.no_grad():
            logs = model(input_ids=ids[None, begin:end]).logits[0].log_softmax(-1)
        for at in range(begin + 1, end):
            if at >= before:
                total -= logs[at - begin - 1, ids[at]].item()
                scored += 1
        before = end
        if end == len(ids):
            break
    return total / scored, scored


def measure(ids: Tensor, context: int, stride: int | None = None) -> Perplexity:
    return tiny_language.finished(stream_perplexity(tiny_language.language().logits, ids, context, stride, stop=StopToken()))


@pytest.mark.parametrize(
    ("tokens", "context", "stride"), [(100, 32, 32), (100, 32, 8), (97, 32, 16), (96, 32, 32), (65, 32, 32), (40, 32, 31)]
)
def test_it_is_what_a_plain_loop_in_float64_computes(tokens: int, context: int, stride: int) -> None:
    ids = stream(tokens)
    nll, scored = plain(ids, context, stride)
    found = measure(ids, context, stride)
    assert found.tokens == scored and found.nll == pytest.approx(nll, rel=1e-6) and found.value == pytest.approx(math.exp(nll), rel=1e-5)
    assert found.protocol == ("non-overlapping windows" if stride == context else "sliding window")


def test_the_stride_is_512_and_never_over_the_context() -> None:
    assert measure(stream(64), 32).stride == 32
    assert [w.begin for w in windows(2048, 1024, 512)] == [0, 512, 1024]


@pytest.mark.parametrize(("tokens", "context", "stride"), [(1000, 100, 100), (1000, 100, 30), (1001, 100, 100), (100, 100, 50)])
def test_windows_score_each_token_once(tokens: int, context: int, stride: int) -> None:
    found = windows(tokens, context, stride)
    scored = [at for w in found for at in range(w.first, w.end)]
    starts = {w.begin for w in found} if stride == context else {0}
    # The last token of 1,001 would stand alone, with nothing to be told from.
    assert scored == [at for at in range(tokens) if at not in starts and not (stride == context and at % context == 0)]
    assert all(w.begin < w.first and w.end - w.begin <= context for w in found)


def test_the_interval_is_that_of_a_ratio_of_sums() -> None:
    ids = stream(160)
    found = measure(ids, 32, 32)
    means = [plain(part, 32, 32)[0] for part in ids.split(32)]
    # Windows of one length: the standard error of the mean of their means.
    wanted = (torch.tensor(means).double().var() / len(means)).sqrt().item()
    assert found.error == pytest.approx(wanted, rel=1e-5) and found.windows == 5
    assert found.low == pytest.approx(math.exp(found.nll - 1.96 * wanted), rel=1e-5) and found.low < found.value < (found.high or 0)
    assert measure(ids[:32], 32).error is None


def test_sequences_are_scored_from_their_own_beginnings() -> None:
    several = [stream(length, length) for length in (5, 31, 2, 17, 1, 31, 9, 12, 3, 20, 4)]
    found = tiny_language.finished(sequence_perplexity(tiny_language.language().logits, several, stop=StopToken()))
    parts = [plain(ids, 32, 32) for ids in several if len(ids) > 1]
    scored = sum(count for _, count in parts)
    assert found.tokens == scored == sum(len(ids) - 1 for ids in several)
    assert found.nll == pytest.approx(sum(nll * count for nll, count in parts) / scored, rel=1e-6)
    assert (found.windows, found.context, found.stride, found.protocol) == (10, 31, None, "sequences")


def test_a_short_text_and_output_that_is_not_a_number_are_refused() -> None:
    with pytest.raises(EngineError, match="31 tokens, fewer than the context of 32"):
        measure(stream(31), 32)
    broken = stream_perplexity(
        lambda ids: torch.full((*ids.shape, 9), float("nan")), torch.ones(64, dtype=torch.int64), 32, stop=StopToken()
    )
    with pytest.raises(EngineError, match="NaN or infinite"):
        tiny_language.finished(broken)

    def breaks_in_the_middle(ids: Tensor) -> Tensor:
        found = torch.zeros(*ids.shape, tiny_language.ROWS)
        found[len(ids) // 2, :, 0] = float("nan") if len(ids) > 1 else 0.0
        return found

    with pytest.raises(EngineError, match="NaN or infinite"):
        tiny_language.finished(stream_perplexity(breaks_in_the_middle, stream(32 * 4), 32, stop=StopToken()))
    with pytest.raises(EngineError, match="two tokens"):
        tiny_language.finished(sequence_perplexity(lambda ids: ids, [stream(1)], stop=StopToken()))


def test_it_can_be_stopped_in_each_batch_and_tells_how_far_it_is() -> None:
    stop = StopToken()
    steps = stream_perplexity(tiny_language.language().logits, stream(2000), 32, stop=stop)
    event = next(steps)
    # The first batch is one window; it tells how large the others may be.
    assert isinstance(event, Progress) and (event.done, event.unit) == (31, "tok")
    stop.set()
    with pytest.raises(Cancelled):
        next(steps)
