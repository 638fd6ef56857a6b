"""Training on a stream: it learns, ends where it should, and is the same whether or not it was resumed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny_language
import torch
from trainings import OnEvent, check_checkpoints_are_told_apart, ended_early, nothing, resumed_and_straight, stream, watched

from engine.errors import EngineError
from engine.events.cancellation import StopToken
from engine.events.event import EpochFinished, Event, Progress, Step
from engine.training.language_fit import TextSchedule, batches, fit_text
from engine.training.trainable import Fitted, TrainingContext

SCHEDULE = TextSchedule(epochs=4, context=32, short=2, tokens=128, lr=1e-2, mixed=False)


TRAIN, VALIDATION = stream(90, 1), stream(20, 2)


def fitted(schedule: TextSchedule = SCHEDULE, on_event: OnEvent = nothing, **options: Any) -> tuple[Fitted, list[Event]]:
    model, stop = tiny_language.gpt2(seed=5), StopToken()
    context = TrainingContext(stop, **options)
    steps = fit_text(model, lambda ids: model(input_ids=ids, use_cache=False).logits, TRAIN, VALIDATION, schedule, context)
    return watched(steps, stop, on_event)


def test_it_learns_and_keeps_the_best_epoch() -> None:
    found, seen = fitted()
    assert found.losses[-1] < found.losses[0] - 0.5 and found.value == min(found.values) and found.values[found.epoch - 1] == found.value
    epochs = [event for event in seen if isinstance(event, EpochFinished)]
    assert [e.epoch for e in epochs] == [1, 2, 3, 4] and {e.metric for e in epochs} == {"perplexity"}
    assert [e.best for e in epochs] == [value == min(found.values[: i + 1]) for i, value in enumerate(found.values)]
    steps = [event for event in seen if isinstance(event, Step)]
    assert steps[-1].done == steps[-1].total == sum(SCHEDULE.steps(epoch, len(TRAIN)) for epoch in range(1, 5))
    assert {event.stage for event in seen if isinstance(event, Progress)} == {"train", "judge"}


def test_a_stopped_training_goes_on_as_if_it_had_not_been_stopped(tmp_path: Path) -> None:
    resumed, straight = resumed_and_straight(fitted, "train", SCHEDULE.epochs, tmp_path)
    assert resumed.losses == straight.losses and resumed.values == straight.values
    assert all(torch.equal(resumed.best[name], straight.best[name]) for name in straight.best)


def test_a_checkpoint_of_another_training_is_not_continued(tmp_path: Path) -> None:
    check_checkpoints_are_told_apart(fitted, replace(SCHEDULE, epochs=1), tmp_path)


def test_enough_keeps_what_there_is() -> None:
    assert len(ended_early(fitted).values) == 1


def test_an_epoch_reads_windows_that_do_not_overlap_and_lie_elsewhere_the_next_time() -> None:
    numbers = torch.arange(1000)
    first, second = ([row.tolist() for ids in batches(numbers, SCHEDULE, epoch) for row in ids] for epoch in (1, 4))
    for rows, length in ((first, 16), (second, 32)):
        told = [token for row in rows for token in row[1:]]
        assert all(len(row) == length + 1 for row in rows) and len(told) == len(set(told)) > 800
        assert all(row == list(range(row[0], row[0] + length + 1)) for row in rows)
    assert [row[0] for row in first] != sorted(row[0] for row in first)
    assert len(list(batches(numbers, SCHEDULE, 1))) == SCHEDULE.steps(1, 1000)


def test_the_rate_rises_and_falls_to_a_tenth() -> None:
    rates = [SCHEDULE.rate(step, 1000) for step in range(1000)]
    assert rates.index(max(rates)) in (39, 40) and rates[0] == pytest.approx(SCHEDULE.lr / 40)
    assert rates[-1] == pytest.approx(SCHEDULE.lr / 10, rel=0.01) and sorted(rates[40:], reverse=True) == rates[40:]


def test_too_little_text_and_a_loss_that_is_not_finite() -> None:
    model = tiny_language.gpt2()
    with pytest.raises(EngineError, match="tokens to train on, fewer than a step takes"):
        tiny_language.finished(fit_text(model, model, TRAIN[:60], VALIDATION, SCHEDULE, TrainingContext(StopToken())))
    with pytest.raises(EngineError, match="lower the learning rate"):
        fitted(replace(SCHEDULE, lr=1e30, warmup=0))
