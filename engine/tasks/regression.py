"""Regression: numbers that are predicted of an item, judged by the mean absolute error."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.data.items import ItemData, targets_of
from engine.errors import EngineError
from engine.events.cancellation import StopToken
from engine.events.event import Event
from engine.models.mlp import MLP
from engine.recipe.recipe import Recipe
from engine.tasks import image_items, items, pooling
from engine.tasks.base import Batch, ItemAnswer
from engine.tasks.intervals import bootstrap, paired_error
from engine.tasks.metrics import MAE, R2, MetricValue
from engine.tasks.subject import Subject


class Regression(items.ItemTask):
    """Items to numbers (N, columns), held against targets float (N, columns)."""

    name, item, unit, plural = "regression", "item", "items", "items"
    metrics = (MAE, R2)

    def __init__(self, data: ItemData) -> None:
        super().__init__(data)
        self._middle, self._spread = _scale(targets_of(data.train))

    def evaluator(self) -> Errors:
        return Errors()

    def loss(self, raw: Tensor, targets: Tensor) -> Tensor:
        # In units of the targets' spread: the rate of a training is then the same for grams and for tons.
        spread = self._spread.to(raw.device)
        return F.smooth_l1_loss(raw / spread, targets / spread)

    def begin_training(self, model: nn.Module) -> Callable[[], None]:
        """The last linear layer answers in units of the targets' spread around their mean, until both go into its weights; a model that
        brings its features to one scale is shown them."""
        if isinstance(model, MLP):
            train = self.items.train
            model.standardize(train.read(range(len(train))).inputs)
        columns = self.items.outputs
        heads = [module for module in model.modules() if isinstance(module, nn.Linear) and module.out_features == columns]
        if not heads:
            return super().begin_training(model)
        head, spread = heads[-1], self._spread
        middle = self._middle if head.bias is not None else torch.zeros_like(spread)

        def scaled(module: nn.Module, args: Any, output: Tensor) -> Tensor:
            return output * spread.to(output.device) + middle.to(output.device)

        handle = head.register_forward_hook(scaled)

        def end() -> None:
            handle.remove()
            with torch.no_grad():
                head.weight.mul_(spread.to(head.weight.device)[:, None])
                if head.bias is not None:
                    head.bias.mul_(spread.to(head.bias.device)).add_(middle.to(head.bias.device))

        return end

    def check(self, outputs: tuple[Tensor, ...], batch: Batch, name: str) -> None:
        if outputs[0].shape != batch.targets.shape:
            found, wanted = tuple(outputs[0].shape), tuple(batch.targets.shape)
            raise EngineError(
                f"{name} returns {found} for {batch.count} items, and {self.items.name} has targets {wanted}: change its head"
            )

    def item_answers(self, raw: Any, batch: Batch) -> Sequence[ItemAnswer]:
        found, wanted = self.outputs(raw)[0].cpu(), batch.targets.cpu()
        errors = (found - wanted).abs().mean(1).tolist()
        return [ItemAnswer(_written(a), _written(b), -error) for a, b, error in zip(found, wanted, errors, strict=True)]


def _scale(targets: Tensor) -> tuple[Tensor, Tensor]:
    """The mean and the spread of each column; of a column that is the same everywhere its size, or 1."""
    middle, spread = targets.double().mean(0), targets.double().std(0, correction=0)
    spread = torch.where(spread > 0, spread, torch.where(middle != 0, middle.abs(), torch.ones_like(middle)))
    return middle.float(), spread.float()


def _written(numbers: Tensor) -> str:
    return ", ".join(f"{number:.4g}" for number in numbers.tolist())


class Errors:
    """Sums of absolute and squared errors, item by item."""

    pooled: ClassVar[Mapping[str, pooling.How]] = {"_rows": "sum"}

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

    def chance(self) -> float:
        """The MAE of an answer that is the median for all items."""
        wanted = self._items[:, 3:-1]
        return float((wanted - wanted.median(0).values).abs().mean())

    def difference_error(self, reference: Errors) -> float | None:
        """The standard error of the difference in MAE."""
        return paired_error(self._items, reference._items, _mae)


def _mae(sums: Tensor) -> Tensor:
    return sums[:, 0] / sums[:, -1]


def _r2(sums: Tensor) -> Tensor:
    """1 less the squared errors as a part of the targets' squared distance from their mean, all columns together."""
    spread = sums[:, 2] - sums[:, 3:-1].square().sum(1) / sums[:, -1]
    return 1 - sums[:, 1] / spread


def settled(recipe: Recipe) -> Recipe:
    """The recipe with the task's data and what the model takes, where nothing was said."""
    return image_items.settled(recipe, Regression.name)


def alone(recipe: Recipe) -> Regression:
    """The task on the recipe's data, without the model."""
    return Regression(items.data_of(recipe, Regression.name))


def load(recipe: Recipe, stop: StopToken, device: str) -> Generator[Event, None, Subject]:
    """The model and the data that ``recipe`` names. Raises UsageError or EngineError in one line for what does not fit."""
    return (yield from image_items.load_subject(alone, recipe, device))
