"""A recipe that runs again from any folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from engine.data.names import is_random
from engine.data.registry import ENTRIES as IMAGES
from engine.data.text.corpora import ENTRIES as TEXTS
from engine.models.language_registry import is_place
from engine.recipe.recipe import Recipe


def absolute(recipe: Recipe) -> Recipe:
    """The recipe with whole paths, so that it runs again from any folder."""
    given: dict[str, Any] = {}
    place, _, factory = recipe.model.rpartition(":")
    if place.endswith(".py"):
        given["model"] = f"{Path(place).resolve()}:{factory}"
    elif is_place(recipe.model):
        given["model"] = str(Path(recipe.model).expanduser().resolve())
    if recipe.task and ".py:" in recipe.task:
        file, _, factory = recipe.task.rpartition(":")
        given["task"] = f"{Path(file).resolve()}:{factory}"
    if recipe.weights:
        given["weights"] = str(Path(recipe.weights).resolve())
    part = recipe.data
    places = {key: _whole(value) for key in ("classes", "calibration_from") if (value := getattr(part, key))}
    if part.name not in (*IMAGES, *TEXTS) and not is_random(part.name):
        places["name"] = str(Path(part.name).resolve())
    if places:
        given["data"] = part.model_copy(update=places)
    return recipe.model_copy(update=given)


def _whole(place: str) -> str:
    return str(Path(place).expanduser().resolve())
