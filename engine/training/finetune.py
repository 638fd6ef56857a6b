"""What a decoder on low-bit weights is fine-tuned by: the schedule and the batches of each epoch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from engine.data.text.encoded import SequenceData, TextData
from engine.errors import EngineError
from engine.training.schedule import Schedule
from engine.training.text_batches import batches, shared_rows, steps
from engine.training.trainable import Part


@dataclass(frozen=True, kw_only=True)
class TuneSchedule(Schedule):
    """AdamW without decay.

    An epoch reads ``windows`` windows of ``context`` tokens (or as many sequences), about ``tokens`` of them a step. ``lr`` is that
    of norms and biases; ``places`` times it that of the weights, in steps of their grids, 0 where integers are to stay; ``scales``
    times it that of the scales' logarithms. A gradient's momentum lasts about ten steps: ten times ``lr`` times ``places`` is to stay
    well below the half step that moves a weight to another integer, or noise moves many at once. ``distill`` is the weight of the
    fp32 model's answers against the text in the loss. ``judged`` tokens of validation text rank the epochs.
    """

    epochs: int = 4
    lr: float = 1e-3
    optimizer: Literal["sgd", "adamw"] = "adamw"
    clip: float | None = 1.0
    mixed: bool = True
    context: int = 512
    windows: int = 256
    tokens: int = 1024
    places: float = 30.0
    scales: float = 1.0
    distill: float = 0.5
    judged: int | None = 65_536


class TextWindows:
    """``data`` as each epoch of ``schedule`` reads it: ids (N, T) and where they are no filling, bool (N, T), on ``device``.
    Raises EngineError for too little text."""

    unit = "steps"

    def __init__(self, data: TextData | SequenceData, schedule: TuneSchedule, device: str = "cpu") -> None:
        self._data, self._schedule, self._device = data, schedule, device
        self._steps = [steps(data, *self._reading(epoch)) for epoch in range(1, schedule.epochs + 1)]
        if not all(self._steps):
            raise EngineError(f"the text {data.name} has no window of {schedule.context:,} tokens to train on: give a longer text")

    def _reading(self, epoch: int) -> tuple[int, int, int, int]:
        schedule = self._schedule
        return schedule.context, schedule.windows, schedule.tokens, schedule.epoch_seed(epoch)

    def steps(self, epoch: int) -> int:
        return self._steps[epoch - 1]

    def items(self, epoch: int) -> int:
        return self._steps[epoch - 1]

    def batches(self, epoch: int) -> Iterator[Part[tuple[Tensor, Tensor]]]:
        for ids, keep in batches(self._data, *self._reading(epoch)):
            yield Part((ids.to(self._device), keep.to(self._device)), 1)

    def share(self, batch: tuple[Tensor, Tensor], index: int, count: int) -> tuple[tuple[Tensor, Tensor], float]:
        return shared_rows(*batch, index, count)
