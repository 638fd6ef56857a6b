"""Regression: numbers that are predicted of an item, judged by the mean absolute error."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.errors import EngineError
from engine.events.cancellation import StopToken
from engine.events.event import Event
from engine.recipe.recipe import Recipe
from engine.tasks import items
from engine.tasks.base import Batch, ItemAnswer
from engine.tasks.intervals import bootstrap, paired_error
from engine.tasks.metrics import MAE, R2, MetricValue
from engine.tasks.subject import Subject

# Columns of a target that are told of a single item.
_SHOWN = 4


class Regression(items.ItemTask):
    """Items to numbers (N, columns), held against targets float (N, columns)."""

    name, item, unit, plural = "regression", "item", "items", "items"
    metrics = (MAE, R2)

    def evaluator(self) -> Errors:
        return Errors()

    def loss(self, raw: Tensor, targets: Tensor) -> Tensor:
        return F.smooth_l1_loss(raw, targets)

    def item_answers(self, raw: Tensor, batch: Batch) -> Sequence[ItemAnswer]:
        errors = (raw - batch.targets).abs().mean(1).tolist()
        rows = zip(raw.tolist(), batch.targets.tolist(), errors, strict=True)
        return [ItemAnswer(_numbers(found), _numbers(wanted), -error) for found, wanted, error in rows]

    def check(self, outputs: tuple[Tensor, ...], batch: Batch, name: str) -> None:
        if outputs[0].shape != batch.targets.shape:
            found, wanted = tuple(outputs[0].shape), tuple(batch.targets.shape)
            raise EngineError(
                f"{name} returns {found} for {batch.count} items, and {self.items.name} has targets {wanted}: change its head"
            )


class Errors:
    """Sums of absolute and squared errors, item by item."""

    def __init__(self) -> None:
        self._rows: list[Tensor] = []

    def update(self, raw: Tensor, targets: Tensor) -> None:
        error = (raw - targets).double().cpu()
        wanted = targets.double().cpu()
        each = torch.stack([error.abs().mean(1), error.square().sum(1), wanted.square().sum(1)], 1)
        self._rows.append(torch.cat([each, wanted, torch.ones(len(wanted), 1, dtype=torch.float64)], 1))

    @property
    def _items(self) -> Tensor:
        return torch.cat(self._rows)

    def compute(self) -> Mapping[str, MetricValue]:
        return {"MAE": bootstrap(self._items, _mae), "R²": bootstrap(self._items, _r2)}

    def difference_error(self, reference: Errors) -> float | None:
        """The standard error of the difference in MAE."""
        return paired_error(self._items, reference._items, _mae)


def _numbers(values: list[float]) -> str:
    shown = [f"{value:.4g}" for value in values[:_SHOWN]]
    return ", ".join([*shown, "…"] if len(values) > _SHOWN else shown)


def _mae(sums: Tensor) -> Tensor:
    return sums[:, 0] / sums[:, -1]


def _r2(sums: Tensor) -> Tensor:
    """1 less the squared errors as a part of the targets' squared distance from their mean, all columns together."""
    spread = sums[:, 2] - sums[:, 3:-1].square().sum(1) / sums[:, -1]
    return 1 - sums[:, 1] / spread


def alone(recipe: Recipe) -> Regression:
    """The task on the recipe's data, without the model."""
    return Regression(items.data_of(recipe, Regression.name))


def load(recipe: Recipe, stop: StopToken, device: str) -> Generator[Event, None, Subject]:
    """The model and the data that ``recipe`` names. Raises UsageError or EngineError in one line for what does not fit."""
    return (yield from items.load_subject(alone(recipe), recipe, device))
