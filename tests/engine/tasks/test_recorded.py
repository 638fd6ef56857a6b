"""A recorded step against the step that it stands for; on a GPU the recording is a CUDA graph, elsewhere the step itself."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from families import FAMILIES, build
from small_decoders import VOCABULARY, small

from engine.errors import EngineError
from engine.tasks.decode_timing import step_of
from engine.tasks.recorded_decoding import Recorded, cuda_graph, quickest

IDS = torch.randint(2, VOCABULARY, (1, 9), generator=torch.Generator().manual_seed(3))
WRITTEN = torch.randint(2, VOCABULARY, (2, 6), generator=torch.Generator().manual_seed(4))
gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")


def again(run: Any) -> Any:
    """Stands for a recording: the same function on the same memory."""
    run()
    return run


def logits(step: Any, ids: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """After ``ids``, and after each of ``tokens``."""
    with torch.inference_mode():
        out, past = step(ids, None)
        found = [out.clone()]
        for token in tokens:
            out, past = step(token.view(1, 1), past)
            found.append(out.clone())
    return torch.stack(found)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_recorded_step_gives_what_the_step_gives_text_after_text(family: str) -> None:
    model = small(family)
    step = Recorded(model, 20, again)
    for tokens in WRITTEN:
        torch.testing.assert_close(logits(step, IDS, tokens), logits(step_of(model), IDS, tokens), rtol=1e-3, atol=1e-3)
    assert step.recorded and step.why is None


def test_the_past_that_was_read_stays_as_it_was() -> None:
    step = Recorded(small(), 20, again)
    with torch.inference_mode():
        _, past = step(IDS, None)
        first, _ = step(WRITTEN[0, :1][None], past)
        assert past.get_seq_length() == IDS.shape[1]
        second, _ = step(WRITTEN[0, :1][None], past)
    torch.testing.assert_close(first, second)


def test_what_differs_is_written_without_a_recording() -> None:
    model = small()
    step = Recorded(model, 20, lambda run: lambda: run() + 100.0)
    torch.testing.assert_close(logits(step, IDS, WRITTEN[0]), logits(step_of(model), IDS, WRITTEN[0]))
    assert not step.recorded and "off by" in str(step.why)


def test_what_cannot_be_recorded_is_written_without() -> None:
    def fails(run: Any) -> Any:
        raise RuntimeError("operation not permitted when stream is capturing")

    model = small()
    step = Recorded(model, 20, fails)
    torch.testing.assert_close(logits(step, IDS, WRITTEN[0]), logits(step_of(model), IDS, WRITTEN[0]))
    assert not step.recorded and "RuntimeError" in str(step.why)


def test_a_window_that_slides_is_not_recorded() -> None:
    model = build("mistral", sliding_window=8).eval()
    step = Recorded(model, 20, again)
    torch.testing.assert_close(logits(step, IDS, WRITTEN[0]), logits(step_of(model), IDS, WRITTEN[0]))
    assert not step.recorded and step.why is not None


def test_a_text_beyond_the_recording_is_told() -> None:
    step = Recorded(small(), IDS.shape[1] + 2, again)
    with pytest.raises(EngineError, match="room for 11 tokens"):
        logits(step, IDS, WRITTEN[0])


def test_a_text_that_is_being_written_takes_one_token_at_a_time() -> None:
    step = Recorded(small(), 20, again)
    with torch.inference_mode():
        _, past = step(IDS, None)
        _, past = step(WRITTEN[:1, :1], past)
        with pytest.raises(EngineError, match="one token at a time"):
            step(WRITTEN[:1, :2], past)


def test_a_longer_text_than_the_recording_has_room_for_is_continued_without() -> None:
    model = small()
    step = Recorded(model, IDS.shape[1] + 2, again)
    for count in (2, len(WRITTEN[0])):
        longer = torch.cat([IDS, WRITTEN[1:, : count - 2]], 1)
        tokens = WRITTEN[0, :2]
        torch.testing.assert_close(logits(step, longer, tokens), logits(step_of(model), longer, tokens), rtol=1e-3, atol=1e-3)
    assert step.recorded and step.why is None


def test_a_processor_needs_no_recording() -> None:
    assert not isinstance(quickest(small(), "cpu", 20), Recorded)


@gpu
@pytest.mark.parametrize("family", FAMILIES)
def test_a_cuda_graph_gives_what_the_step_gives(family: str) -> None:
    model = small(family).cuda()
    step = Recorded(model, 20, cuda_graph)
    for tokens in WRITTEN.cuda():
        expected = logits(step_of(model), IDS.cuda(), tokens)
        torch.testing.assert_close(logits(step, IDS.cuda(), tokens), expected, rtol=1e-2, atol=1e-2)
    # OPT counts its past on the processor.
    assert step.recorded or family == "opt", step.why
