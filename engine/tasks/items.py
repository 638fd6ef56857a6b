"""A task whose data are items, and how its model is found: what most tasks of the registry share."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from engine.data import registry as data_registry
from engine.data.items import ItemData, Items
from engine.errors import EngineError, UsageError, one_line
from engine.events.event import Event, Notice
from engine.models import computed_weights, custom
from engine.models.cached import weights_of
from engine.models.registry import ModelEntry, find
from engine.models.torchvision_segmentation import CLASSES
from engine.models.weights_file import load_state, read_checkpoint
from engine.models.widened import tried_in_float32
from engine.recipe.recipe import Recipe
from engine.tasks.base import SPLITS, Batch, Split, Task, forward_of
from engine.tasks.subject import Subject, fingerprint

# Items of the first batch, on which a model is tried and traced.
_FIRST = 8


class ItemTask(Task):
    """A task on ``ItemData``. A task of its kind adds its metrics, its evaluator and its loss. ``found`` are fields of the recipe's data
    that the model has settled, and ``not_taken`` is what to do where a model does not take the items."""

    not_taken: str = ""

    def __init__(self, items: ItemData) -> None:
        self.items = items
        self.doubt = items.doubt
        self.found: Mapping[str, Any] = {}

    def batches(
        self, split: Split, *, batch: int, limit: int | None = None, seed: int | None = None, device: str = "cpu"
    ) -> Iterator[Batch]:
        for items, count in self.items.batches(split, batch, limit=limit, seed=seed):
            yield batch_of(items, count).to(device)

    def training_batches(self, *, batch: int, limit: int, seed: int, device: str = "cpu") -> Iterator[Batch]:
        for items, count in self.items.batches("train", batch, limit=limit, seed=seed, augment=True):
            yield batch_of(items, count).to(device)

    def count(self, split: Split, limit: int | None = None) -> int:
        return self.items.count(split, limit)

    def steps(self, split: Split, *, batch: int, limit: int | None = None) -> int:
        return self.items.steps(split, batch, limit)

    def data(self, calibration: int, limit: int | None) -> dict[str, Any]:
        items = self.items
        return {
            "name": items.name, "calibration": items.count("train", calibration), "train": items.count("train"),
            "validation": items.count("validation"), "test": items.count("test", limit), **items.about,
            **({"notes": list(items.notes)} if items.notes else {}),
        }  # fmt: skip

    def check(self, outputs: tuple[Tensor, ...], batch: Batch, name: str) -> None:
        """Raises EngineError where the outputs of the model ``name`` on ``batch`` are not what the task measures."""

    def prepare(self, model: nn.Module) -> None:
        """Set up ``model`` for the data, before it is tried: what belongs to the data and to no weights."""

    def settled(self, recipe: Recipe) -> Recipe:
        return recipe.model_copy(update={"data": recipe.data.model_copy(update=dict(self.found))}) if self.found else recipe

    def begin_training(self, model: nn.Module) -> Callable[[], None]:
        """What is done to a new ``model`` before it is trained on the task; the result undoes it and leaves the same function."""
        return lambda: None

    def described_data(self) -> str:
        """The data in a few words, for the notice of a run."""
        counts = ", ".join(f"{self.items.count(split):,} {split}" for split in SPLITS)
        return f"{self.items.name}: {counts} {self.plural}"


def batch_of(items: Items, count: int) -> Batch:
    """One call of the model on ``items``."""
    inputs, targets = items
    if isinstance(inputs, Mapping):
        return Batch((), dict(inputs), targets, count)
    return Batch(tuple(inputs) if isinstance(inputs, tuple | list) else (inputs,), {}, targets, count)


def data_of(recipe: Recipe, task: str) -> ItemData:
    """The data of ``task`` that ``recipe`` names. Raises UsageError or EngineError in one line."""
    if recipe.data.calibration_from is not None:
        raise UsageError(f"data.calibration_from is for classification, and the task is {task}: leave it out")
    return data_registry.items(recipe.data, task)


def load_subject(task: ItemTask, recipe: Recipe, device: str) -> Generator[Event, None, Subject]:
    """The model that ``recipe`` names, for ``task``. Raises UsageError or EngineError in one line for whatever does not fit together."""
    torch.manual_seed(recipe.seed)
    model, weights = build(recipe, task.name, task.items)
    return (yield from subject_of(model, task, recipe.model, weights, device))


def subject_of(
    model: nn.Module, task: ItemTask, name: str, weights: str, device: str, lowering: str = "graph"
) -> Generator[Event, None, Subject]:
    """``model`` and ``task`` held against each other. Raises EngineError in one line for what does not fit."""
    computed_weights.settle(model.eval())
    model.requires_grad_(False)
    example, said = tried_in_float32(model, lambda _: tried(model, task, name))
    if said:
        yield Notice(f"{name}: {said}")
    for note in task.items.notes:
        yield Notice(f"{task.items.name}: {note}")
    yield Notice(f"{name} with {sum(p.numel() for p in model.parameters()):,} parameters, weights {weights}; {task.described_data()}")
    return Subject(model, task, example, device, weights, fingerprint(model), lowering, {"weights": weights})


def tried(model: nn.Module, task: ItemTask, name: str) -> Batch:
    """The first training batch, once ``model`` has taken it. Raises EngineError in one line for a model that does not."""
    task.prepare(model)
    batch = next(task.batches("train", batch=_FIRST, limit=_FIRST), None)
    if batch is None:
        raise EngineError(f"the training split of {task.items.name} holds no {task.plural}: use other data")
    with torch.no_grad():
        try:
            raw = forward_of(model)(batch)
        except Exception as error:
            advice = f": {task.not_taken}" if task.not_taken else ""
            raise EngineError(f"{name} does not take the {task.plural} of {task.items.name}: {one_line(error, 160)}{advice}") from error
    outputs = task.outputs(raw)
    if not outputs:
        raise EngineError(f"{name} returns {type(raw).__name__} without a tensor of floats: the task {task.name} can measure nothing")
    if not all(torch.isfinite(x).all() for x in outputs):
        raise EngineError(f"{name} gives NaN or infinity on the first {task.plural}: {task.not_finite}")
    task.check(outputs, batch, name)
    return batch


def build(recipe: Recipe, task: str, items: ItemData) -> tuple[nn.Module, str]:
    """The model that ``recipe`` names for the data of ``task``, and where its weights come from. Raises EngineError where a model of the
    list has no weights for the data."""
    if custom.is_custom(recipe.model):
        return custom.build_with(recipe.model, recipe.weights, items.name)
    entry = find(recipe.model)
    entry.fits(task)
    model = entry.build(items.outputs, features=items.about.get("features"))
    file, words = _weights(entry, recipe, items)
    state = read_checkpoint(file)
    load_state(model, state.tensors, file, entry.name, items.name)
    return model, words + state.said


def _weights(entry: ModelEntry, recipe: Recipe, items: ItemData) -> tuple[Path, str]:
    if found := weights_of(entry, recipe.weights, data_registry.known_as(recipe.data.name)):
        return found
    if entry.segmenter and items.outputs == CLASSES and (published := entry.segmenter.cached()):
        return published, "from torchvision"
    raise EngineError(
        f"{entry.name} has no weights for {items.name} in the package: give --weights FILE or run "
        f"`qtui train {entry.name} --data {recipe.data.name}`"
    )
