"""Outputs that are kept from one pass to the next."""

from __future__ import annotations

import torch

from engine.runs.remembered import Remembered
from engine.tasks.base import Batch


def test_outputs_are_computed_once_up_to_a_size_and_come_in_order() -> None:
    calls: list[float] = []

    def forward(batch: Batch) -> torch.Tensor:
        calls.append(float(batch.args[0][0]))
        return batch.args[0] * 2

    batches = [Batch((torch.full((4,), float(i)),), count=4) for i in range(5)]
    remembered = Remembered(forward, most=3 * 16)
    for _ in range(3):
        remembered.rewind()
        assert [float(remembered(batch)[0]) for batch in batches] == [0.0, 2.0, 4.0, 6.0, 8.0]
    # Three have room; the others are computed each time.
    assert calls == [0.0, 1.0, 2.0, 3.0, 4.0, 3.0, 4.0, 3.0, 4.0]
