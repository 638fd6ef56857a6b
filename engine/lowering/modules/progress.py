"""What block-by-block quantization says of each matrix. Torch-free."""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass, replace
from typing import TypeVar

from engine.events.event import Detail, Event

T = TypeVar("T")


@dataclass(frozen=True)
class MatrixQuantized(Detail):
    """One matrix is at its final bits.

    ``sqnr_db`` is of the layer's output on the calibration text: the signal is W x, the noise (W - Ŵ) x, less its mean where
    the layer's bias takes that up; of the weights alone where ``method`` needs no text. Where errors are propagated, the noise is
    told from the weights as they were moved for it. ``folded_into`` names the layer that took the input's scale back. ``note`` is
    a plain sentence, or None. ``seconds`` it took, its inputs included; ``kept`` was done before, and read from a checkpoint.
    """

    name: str
    spec: str
    method: str
    sqnr_db: float
    bytes: int
    folded_into: str | None = None
    note: str | None = None
    kept: bool = False
    seconds: float = 0.0


def timed(steps: Generator[Event, None, T], clock: Callable[[], float]) -> Generator[Event, None, T]:
    """Pass events on; each matrix with the seconds since the one before."""
    took = 0.0
    while True:
        begun = clock()
        try:
            event = next(steps)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]
        took += clock() - begun
        if isinstance(event, MatrixQuantized):
            event, took = replace(event, seconds=round(took, 4)), 0.0
        yield event


def noted(steps: Generator[Event, None, T], note: Callable[[MatrixQuantized], None]) -> Generator[Event, None, T]:
    """Pass events on; ``note`` is told of each matrix."""
    while True:
        try:
            event = next(steps)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]
        if isinstance(event, MatrixQuantized):
            note(event)
        yield event
