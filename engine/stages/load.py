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
from engine.data.base import Data
from engine.errors import EngineError, UsageError, one_line
from engine.events import Event, Notice
from engine.models import custom
from engine.models.cached import cached_weights
from engine.models.registry import ModelEntry, find
from engine.models.weights_file import load_into
from engine.recipe import Recipe


@dataclass(frozen=True)
class Loaded:
    """``example`` is the first images (N, C, H, W) of the training split, normalized; ``weights`` says where they come
    from, and ``fingerprint`` is a hash of them."""

    model: nn.Module
    data: Data
    example: Tensor
    device: str
    weights: str
    fingerprint: str


def load(recipe: Recipe) -> Generator[Event, None, Loaded]:
    """Raises UsageError or EngineError in one line for whatever does not fit together."""
    device = pick_device(recipe.device)
    # A factory may draw its weights at random: the same recipe then draws the same.
    torch.manual_seed(recipe.seed)
    if not custom.is_custom(recipe.model):
        find(recipe.model)
    data = data_registry.load(recipe.data.name, mean=recipe.data.mean, std=recipe.data.std, size=recipe.data.size)
    model, weights = _model(recipe, data)
    example, _ = next(data.batches("train", 8, limit=8), (None, None))
    if example is None:
        raise EngineError(f"the calibration set is empty: the training split of {data.name} holds no images: use other data")
    _check(model, example, data, recipe)
    yield Notice(
        f"{recipe.model} with {sum(p.numel() for p in model.parameters()):,} parameters, weights {weights}; "
        f"{data.name}: {data.count('train'):,} training, {data.count('validation'):,} validation and {data.count('test'):,} test images"
    )
    return Loaded(model, data, example, device, weights, _fingerprint(model))


def absolute(recipe: Recipe) -> Recipe:
    """The recipe with whole paths, so that it runs again from any folder."""
    given: dict[str, Any] = {}
    place, _, factory = recipe.model.rpartition(":")
    if place.endswith(".py"):
        given["model"] = f"{Path(place).resolve()}:{factory}"
    if recipe.weights:
        given["weights"] = str(Path(recipe.weights).resolve())
    if recipe.data.name not in data_registry.ENTRIES:
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


def _model(recipe: Recipe, data: Data) -> tuple[nn.Module, str]:
    if custom.is_custom(recipe.model):
        model, packaged = custom.build(recipe.model), None
    else:
        entry = find(recipe.model)
        fits(entry, data)
        model, packaged = entry.build(len(data.classes)), entry.weights_for(data.name)
    if recipe.weights:
        load_into(model, Path(recipe.weights), recipe.model)
        weights = f"from {recipe.weights}"
    elif packaged:
        load_into(model, packaged, recipe.model)
        weights = "from the package"
    elif not custom.is_custom(recipe.model) and (kept := cached_weights(recipe.model, recipe.data.name)).is_file():
        load_into(model, kept, recipe.model)
        weights = "from the cache"
    elif custom.is_custom(recipe.model):
        weights = "as its factory gives them"
    else:
        train = f"qtui train {recipe.model} --data {recipe.data.name}"
        raise EngineError(f"{recipe.model} has no weights for {data.name} in the package: give --weights FILE or run `{train}`")
    model.eval().requires_grad_(False)
    broken = [name for name, p in model.state_dict().items() if p.is_floating_point() and not torch.isfinite(p).all()]
    if broken:
        raise EngineError(f"{recipe.model} holds NaN or infinity in {broken[0]}: use other weights")
    return model, weights


def fits(entry: ModelEntry, data: Data) -> None:
    """Raises EngineError when the model does not take the data's images."""
    if entry.shape != data.shape:
        raise EngineError(f"{data.name} has images of {_size(data.shape)} and {entry.name} takes {_size(entry.shape)}: {_resize(data)}")


def _check(model: nn.Module, example: Tensor, data: Data, recipe: Recipe) -> None:
    if not torch.isfinite(example).all():
        raise EngineError(f"{data.name} gives NaN or infinity: check data.mean and data.std")
    with torch.no_grad():
        try:
            logits = model(example)
        except Exception as error:
            text = one_line(error, 160)
            raise EngineError(f"{recipe.model} does not take images of {_size(data.shape)} ({text}): {_resize(data)}") from error
    if not isinstance(logits, Tensor) or logits.dim() != 2:
        shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise EngineError(f"{recipe.model} returns {shape}, not logits of shape (N, classes): wrap it in a factory that does")
    if logits.shape[1] < len(data.classes):
        raise EngineError(
            f"{recipe.model} knows {logits.shape[1]} classes and {data.name} has {len(data.classes)}: use other data or another head"
        )
    if not torch.isfinite(logits).all():
        raise EngineError(f"{recipe.model} gives NaN or infinity on the first images: check its weights and data.mean, data.std")


def _size(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape))


def _resize(data: Data) -> str:
    return (
        "set data.size in the recipe, or use another model" if data.name not in data_registry.ENTRIES else "use other data or another model"
    )
