"""The loss of an epoch: the same sum however often it was read."""

from __future__ import annotations

import pytest
import torch

from engine.errors import EngineError
from engine.training.language_fit import TextSchedule
from engine.training.running_loss import RunningLoss

LOSSES = torch.rand(50, generator=torch.Generator().manual_seed(0))
SCHEDULE = TextSchedule(epochs=3, context=32)


def total(reads: set[int]) -> float:
    running = RunningLoss("cpu")
    for number, loss in enumerate(LOSSES):
        running.add(loss, 1 + number % 3)
        if number in reads or number == len(LOSSES) - 1:
            running.read()
    return running.total


def test_reading_changes_nothing() -> None:
    exact = sum(loss.double().item() * (1 + i % 3) for i, loss in enumerate(LOSSES))
    assert total(set()) == total({3, 4, 17}) == total(set(range(50))) == pytest.approx(exact, rel=1e-12)


def test_an_event_has_the_mean_since_the_last_one() -> None:
    running = RunningLoss("cpu")
    running.add(torch.tensor(4.0))
    running.add(torch.tensor(1.0), 3)
    first = running.step("train", 1, SCHEDULE, 2, 30)
    running.add(torch.tensor(5.0))
    second = running.step("train", 1, SCHEDULE, 3, 30)
    assert (first.loss, second.loss, second.done, second.total, second.epochs) == (1.75, 5.0, 3, 30, 3)
    assert second.lr == SCHEDULE.rate(2, 30)
    running.add(torch.tensor(float("nan")))
    with pytest.raises(EngineError, match=r"not finite in epoch 2: lower the learning rate \(now 0\.002\)"):
        running.step("train", 2, SCHEDULE, 4, 30)
