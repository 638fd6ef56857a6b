"""What tasks on images of one's own share: the size that a model takes, and grey images for a model that takes one channel."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any, TypeVar

import torch
from torch import nn

from engine.data.registry import ENTRIES as DATA
from engine.events.event import Event
from engine.models import custom
from engine.models.registry import ENTRIES as MODELS
from engine.recipe.recipe import Recipe
from engine.tasks.items import ItemTask, build, subject_of
from engine.tasks.registry import TASKS
from engine.tasks.subject import Subject

T = TypeVar("T", bound=ItemTask)


def settled(recipe: Recipe, task: str) -> Recipe:
    """The recipe with the data of ``task``, and for images of one's own what the model expects of them, where nothing was said."""
    recipe = TASKS[task].with_data(recipe)
    if recipe.data.name in DATA or recipe.data.size is not None or custom.is_custom(recipe.model) or recipe.model not in MODELS:
        return recipe
    entry, part = MODELS[recipe.model], recipe.data
    asked: dict[str, Any] = {}
    if entry.published is not None:
        form = entry.published.transform
        asked = {"size": form.resize, "crop": form.size, "interpolation": form.interpolation, "mean": form.mean, "std": form.std}
    elif entry.shape is not None:
        asked = {"size": entry.shape[1]}
    return with_data(recipe, {key: value for key, value in asked.items() if getattr(part, key) is None})


def with_data(recipe: Recipe, fields: dict[str, Any]) -> Recipe:
    """The recipe with ``fields`` of its data."""
    if not fields:
        return recipe
    # Made anew, so that what is settled counts as said.
    part = type(recipe.data).model_validate({**recipe.data.model_dump(exclude_unset=True), **fields})
    return recipe.model_copy(update={"data": part})


def load_subject(alone: Callable[[Recipe], T], recipe: Recipe, device: str) -> Generator[Event, None, Subject]:
    """The model and the data that ``recipe`` names; ``alone`` makes the task. Raises UsageError or EngineError in one line for what does
    not fit."""
    torch.manual_seed(recipe.seed)
    task = alone(recipe)
    model, weights = build(recipe, task.name, task.items)
    if recipe.data.channels is None and recipe.data.name not in DATA and _takes_grey(model):
        found = {"channels": 1}
        task = alone(with_data(recipe, found))
        task.found = found
    return (yield from subject_of(model, task, recipe.model, weights, device))


def _takes_grey(model: nn.Module) -> bool:
    first = next((module for module in model.modules() if isinstance(module, nn.Conv2d)), None)
    return first is not None and first.in_channels == 1
