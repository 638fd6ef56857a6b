"""load: the recipe's words to a model with weights, data, and a device. Nothing is written before this has succeeded."""

from __future__ import annotations

import hashlib
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from engine.data import registry as data_registry
from engine.data.images.base import Data
from engine.data.text.corpora import ENTRIES as TEXTS
from engine.errors import UsageError
from engine.events.event import Event, Notice
from engine.export.registry import find
from engine.models.language_registry import ENTRIES as LANGUAGE
from engine.models.language_registry import is_language
from engine.models.registry import Stem
from engine.recipe.recipe import Recipe
from engine.runs.stages import weighted
from engine.runs.stages.fitting import check, first_images, transform_of


@dataclass(frozen=True)
class Loaded:
    """``example`` is the first images (N, C, H, W) of the training split, normalized; ``weights`` says where they come
    from, ``fingerprint`` is a hash of them, and ``stem`` is that of a model which has more than one."""

    model: nn.Module
    data: Data
    example: Tensor
    device: str
    weights: str
    fingerprint: str
    stem: Stem | None = None


def load(recipe: Recipe) -> Generator[Event, None, Loaded]:
    """Raises UsageError or EngineError in one line for whatever does not fit together."""
    for name in recipe.export:
        find(name)
    device = pick_device(recipe.device)
    # A factory may draw its weights at random: the same recipe then draws the same.
    torch.manual_seed(recipe.seed)
    part = recipe.data
    data = data_registry.load(part.name, mean=part.mean, std=part.std, size=part.size, transform=transform_of(recipe.model))
    model, weights, stem = weighted.make(recipe, data)
    example = first_images(data)
    check(model, example, data, recipe.model)
    if data.transform is not None:
        yield Notice(f"images of {data.name}: {data.transform}")
    yield Notice(
        f"{recipe.model} with {sum(p.numel() for p in model.parameters()):,} parameters, weights {weights}; "
        f"{data.name}: {data.count('train'):,} training, {data.count('validation'):,} validation and {data.count('test'):,} test images"
    )
    return Loaded(model, data, example, device, weights, _fingerprint(model), stem)


def absolute(recipe: Recipe) -> Recipe:
    """The recipe with whole paths, so that it runs again from any folder."""
    given: dict[str, Any] = {}
    place, _, factory = recipe.model.rpartition(":")
    if place.endswith(".py"):
        given["model"] = f"{Path(place).resolve()}:{factory}"
    elif is_language(recipe.model) and recipe.model not in LANGUAGE and Path(recipe.model).expanduser().is_dir():
        given["model"] = str(Path(recipe.model).expanduser().resolve())
    if recipe.weights:
        given["weights"] = str(Path(recipe.weights).resolve())
    if recipe.data.name not in (*data_registry.ENTRIES, *TEXTS):
        given["data"] = recipe.data.model_copy(update={"name": str(Path(recipe.data.name).resolve())})
    return recipe.model_copy(update=given)


def _fingerprint(model: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(name.encode() + tensor.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def pick_device(name: str) -> str:
    """``cpu`` or ``cuda`` for ``auto``, ``cpu`` or ``cuda``. Raises UsageError for a GPU that is not there."""
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise UsageError("--device cuda: torch sees no GPU here: use --device cpu, or look at `qtui doctor`")
    return "cuda" if available and name in ("auto", "cuda") else "cpu"
