"""The model that a recipe names, built for its data, with the weights that belong to it."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from engine.data import registry as data_registry
from engine.data.images.base import Data
from engine.errors import EngineError, UsageError
from engine.models import computed_weights, custom, vision_models
from engine.models.cached import recorded_stem, weights_of
from engine.models.registry import ModelEntry, Stem, find
from engine.models.weights_file import fill, load_state, read_checkpoint
from engine.recipe.recipe import Recipe
from engine.tasks.fitting import fits


def make(recipe: Recipe, data: Data) -> tuple[nn.Module, str, Stem | None]:
    """The model in eval mode, where its weights come from, and its stem where it has more than one."""
    if custom.is_custom(recipe.model):
        model, weights, stem = _custom(recipe, data)
    elif vision_models.is_vision(recipe.model):
        model, weights, stem = _of_transformers(recipe, data)
    else:
        model, weights, stem = _listed(find(recipe.model), recipe, data)
    settle(model.eval(), recipe.model)
    return model, weights, stem


def settle(model: nn.Module, name: str) -> None:
    """Weights that a parametrization computes (weight or spectral normalization) become the values that it gives: in eval mode
    they do not change, and a layer can then be quantized as any other. Raises EngineError, which names the model ``name``, for weights
    that are not finite."""
    computed_weights.settle(model)
    model.requires_grad_(False)
    broken = [path for path, p in model.state_dict().items() if p.is_floating_point() and not torch.isfinite(p).all()]
    if broken:
        raise EngineError(f"{name} holds NaN or infinity in {broken[0]}: use other weights")


def _custom(recipe: Recipe, data: Data) -> tuple[nn.Module, str, None]:
    if recipe.stem != "auto":
        raise UsageError(f"stem is {recipe.stem}, and {recipe.model} is your own factory: leave stem out")
    return *custom.build_with(recipe.model, recipe.weights, data.name), None


def _of_transformers(recipe: Recipe, data: Data) -> tuple[nn.Module, str, None]:
    if recipe.weights or recipe.stem != "auto":
        raise UsageError(f"{recipe.model} brings its weights and its stem: leave --weights and --stem out")
    model = vision_models.load_vision(recipe.model, data.classes, data_registry.is_imagenet(data.classes))
    said = ", whose outputs have no names and are taken in the order of the classes" if model.unnamed else ""
    return model, f"from its folder{said}", None


def _listed(entry: ModelEntry, recipe: Recipe, data: Data) -> tuple[nn.Module, str, Stem | None]:
    entry.fits("classification")
    fits(entry, data)
    where = weights_of(entry, recipe.weights, data_registry.known_as(recipe.data.name))
    file, words = where or (None, "from torchvision")
    if file is None and not (entry.published and data_registry.is_imagenet(data.classes)):
        raise EngineError(f"{entry.name} has no weights for {data.name} in the package: {_named(data)}{_advice(entry, recipe)}")
    side = data.shape[1]
    found = None if file is None else read_checkpoint(file)
    state = found.tensors if found else None
    stem = entry.stem(stem_of(entry, recipe, file, state), side)
    model = entry.build(len(data.classes), side, stem)
    if file is not None and state is not None:
        load_state(model, state, file, entry.name, data.name)
    else:
        assert entry.published is not None
        from engine.models.torchvision_build import published_state

        published = published_state(entry.published, _advice(entry, recipe))
        fill(model, published, f"torchvision's weights ({entry.published.file})", entry.name, data.name)
    words += found.said if found else ""
    return model, words, stem if entry.published and entry.published.has_small_stem else None


def stem_of(entry: ModelEntry, recipe: Recipe, file: Path | None, state: Mapping[str, Tensor] | None) -> Stem:
    """The stem that the weights were trained with, where they tell; else the one that is asked for, or the published one."""
    from engine.models import torchvision_build

    asked: Stem = recipe.stem
    trained: Stem | None = "imagenet"
    if file is not None and state is not None:
        trained = recorded_stem(file) or (torchvision_build.stem_of(entry.published, state) if entry.published else None)
    if trained and asked not in ("auto", trained):
        raise EngineError(f"{file or entry.name} was trained with the stem {trained!r}, not {asked!r}: leave stem out, or train anew")
    return trained or ("imagenet" if asked == "auto" else asked)


def _advice(entry: ModelEntry, recipe: Recipe) -> str:
    return f"give --weights FILE or run `qtui train {entry.name} --data {shlex.quote(recipe.data.name)}`"


def _named(data: Data) -> str:
    """Why data that could be ImageNet's is not taken for it."""
    if len(data.classes) != data_registry.IMAGENET_CLASSES:
        return ""
    first = ", ".join(data.classes[:2])
    return f"its folders ({first} …) are not named by WordNet id (n01440764 …) or 000 to 999, in ImageNet's order; "
