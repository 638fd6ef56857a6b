"""A whole task in one file, as somebody would add it: which of two numbers is larger, and by how much."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from engine.events.event import Event, Notice
from engine.models import custom
from engine.recipe.recipe import Recipe
from engine.tasks.base import Batch, Task
from engine.tasks.metrics import Metric, MetricValue
from engine.tasks.subject import Subject, fingerprint

SIZES = {"train": 256, "validation": 128, "test": 128}


class Difference(Task):
    name, item, unit, plural = "toy", "pair", "pairs", "pairs"
    metrics = (Metric("MAE", higher_is_better=False),)

    def batches(self, split: Any, *, batch: int, limit: Any = None, seed: Any = None, device: str = "cpu") -> Iterator[Batch]:
        draw = torch.Generator().manual_seed(list(SIZES).index(split))
        pairs = torch.rand(SIZES[split], 16, generator=draw)[:limit].to(device)
        for part in torch.split(pairs, batch):
            yield Batch((part,), targets=part[:, :1] - part[:, 1:2], count=len(part))

    def count(self, split: Any, limit: int | None = None) -> int:
        return min(SIZES[split], limit or SIZES[split])

    def loss(self, raw: Any, targets: Any) -> Tensor:
        return nn.functional.mse_loss(raw, targets)

    def evaluator(self) -> Any:
        return MeanError()

    def data(self, calibration: int, limit: int | None) -> dict[str, Any]:
        return {"name": "pairs", "calibration": self.count("train", calibration), **SIZES}


class MeanError:
    def __init__(self) -> None:
        self.errors: list[Tensor] = []

    def update(self, raw: Tensor, targets: Tensor) -> None:
        self.errors.append((raw - targets).abs().flatten())

    def compute(self) -> dict[str, MetricValue]:
        return {"MAE": MetricValue(float(torch.cat(self.errors).mean()))}


def load(recipe: Recipe, stop: Any, device: str) -> Generator[Event, None, Subject]:
    task, model = Difference(), custom.build(recipe.model).eval().requires_grad_(False)
    yield Notice("numbers out of a hat")
    return Subject(model, task, next(task.batches("train", batch=8)), device, "its own", fingerprint(model), "graph")
