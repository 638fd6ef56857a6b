"""What trainings of language models have in common: how tests watch them, and what each is held to."""

from __future__ import annotations

from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any, TypeVar

import pytest
import tiny_language
import torch
from torch import Tensor

from engine.data.text.tokens import encode
from engine.errors import Cancelled, EngineError
from engine.events.cancellation import StopToken
from engine.events.event import EpochFinished, Event, Notice, Progress

T = TypeVar("T")
OnEvent = Callable[[Event, StopToken], None]
# One training: its schedule, where it is another than the usual one, ``on_event``, and the checkpoint with its mark.
Train = Callable[..., tuple[T, list[Event]]]


def stream(count: int, seed: int) -> Tensor:
    return encode(tiny_language.tokenizer(), [tiny_language.Document("x", tiny_language.sentences(count, seed))])


def nothing(event: Event, stop: StopToken) -> None:
    pass


def watched(steps: Generator[Event, None, T], stop: StopToken, on_event: OnEvent) -> tuple[T, list[Event]]:
    """What the generator returns, and its events, each shown to ``on_event``."""
    seen: list[Event] = []
    while True:
        try:
            event = next(steps)
        except StopIteration as end:
            return end.value, seen
        seen.append(event)
        on_event(event, stop)


def resumed_and_straight(train: Train[T], stage: str, epochs: int, place: Path) -> tuple[T, T]:
    """A training that was stopped within its third epoch and went on, and the same one in one go."""

    def stop_in_the_third(event: Event, stop: StopToken) -> None:
        if isinstance(event, Progress) and event.stage == stage and len(done) == 2:
            stop.set()
        if isinstance(event, EpochFinished):
            done.append(event)

    done: list[Event] = []
    options = {"checkpoint": place / "c.pt", "fingerprint": "a"}
    with pytest.raises(Cancelled):
        train(on_event=stop_in_the_third, **options)
    resumed, seen = train(**options)
    assert seen[0] == Notice("continuing at epoch 3, step 2")
    assert sum(isinstance(event, EpochFinished) for event in seen) == epochs - 2
    return resumed, train()[0]


def check_checkpoints_are_told_apart(train: Train[T], short: Any, place: Path) -> None:
    """``short`` is a schedule of one epoch."""
    options = {"checkpoint": place / "c.pt"}
    train(short, fingerprint="a", **options)
    _, seen = train(short, fingerprint="b", **options)
    assert not any(isinstance(event, Notice) for event in seen)
    (place / "c.pt").write_bytes(b"rubbish")
    with pytest.raises(EngineError, match=r"cannot be continued .*: remove it"):
        train(fingerprint="a", **options)
    torch.save({"fingerprint": "a", "losses": []}, place / "c.pt")
    with pytest.raises(EngineError, match=r"cannot be continued .*: remove it"):
        train(fingerprint="a", **options)


def ended_early(train: Train[T]) -> T:
    """A training that was told after an epoch that it is enough."""
    found, seen = train(on_event=lambda event, stop: stop.enough() if isinstance(event, EpochFinished) else None)
    assert any(isinstance(event, Notice) and "ended after epoch 1" in event.text for event in seen)
    return found
