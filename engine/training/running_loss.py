"""The loss of an epoch while it is trained, as each training tells it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from engine.errors import EngineError
from engine.events.event import Step
from engine.training.schedule import Schedule


class RunningLoss:
    """Summed on the device that computes it: reading it at every step would make a GPU wait.

    ``total`` is the sum over the samples as of the last ``read``, as doubles add it, however often it was read.
    """

    def __init__(self, device: str) -> None:
        self.total = 0.0
        self._sum = torch.zeros((), dtype=torch.float64, device=device)
        self._count = 0

    def add(self, mean: Tensor, count: int = 1) -> None:
        """The ``mean`` loss of ``count`` samples."""
        self._sum += mean.detach().double() * count
        self._count += count

    @property
    def unread(self) -> bool:
        """Whether a sample came after the last ``read``."""
        return self._count > 0

    def read(self) -> float:
        """The mean over the samples since the last call."""
        before, self.total = self.total, self._sum.item()
        count, self._count = self._count, 0
        return (self.total - before) / count

    @property
    def finite(self) -> bool:
        return math.isfinite(self._sum.item())

    def state_dict(self) -> dict[str, Any]:
        return {"sum": self._sum.item(), "total": self.total, "count": self._count}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._sum.fill_(float(state["sum"]))
        self.total, self._count = float(state["total"]), int(state["count"])

    def step(self, stage: str, epoch: int, schedule: Schedule, done: int, steps: int) -> Step:
        """``read`` as an event, after ``done`` of all ``steps``. Raises EngineError where the loss is not finite."""
        mean = self.read()
        if not math.isfinite(mean):
            raise EngineError(f"the training loss is not finite in epoch {epoch}: lower the learning rate (now {schedule.lr:g})")
        return Step(stage, epoch, schedule.epochs, done, steps, mean, schedule.rate(done - 1, steps))
