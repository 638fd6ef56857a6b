"""The model of a run without labels: its outputs are counted by its weights, as no data say how many it has."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from engine.data import registry as data_registry
from engine.data.items import ItemData
from engine.errors import EngineError, UsageError
from engine.models import any_transformers, custom
from engine.models.cached import weights_of
from engine.models.registry import ModelEntry, find
from engine.models.transform import Transform
from engine.models.weights_file import fill, load_state, read_checkpoint
from engine.recipe.recipe import Recipe
from engine.tasks import image_models, items

TASK = "fidelity"
# ImageNet's, which published networks have.
_CLASSES = 1000


def transform_of(model: str) -> Transform | None:
    """What a model of the list expects of photographs; None for one's own. Raises UsageError for an unknown name."""
    if any_transformers.is_transformers(model):
        return any_transformers.preprocessing(model)
    published = None if custom.is_custom(model) else find(model).published
    return published.transform if published else None


def build(recipe: Recipe, data: ItemData) -> tuple[nn.Module, str]:
    """The model that ``recipe`` names and where its weights come from. Raises UsageError or EngineError in one line."""
    if custom.is_custom(recipe.model):
        model, weights = items.build(recipe, TASK, data)
    elif any_transformers.is_transformers(recipe.model):
        model, weights = _of_transformers(recipe)
    else:
        model, weights = _listed(find(recipe.model), recipe, data)
    image_models.settle(model, recipe.model)
    return model, weights


def _of_transformers(recipe: Recipe) -> tuple[nn.Module, str]:
    if recipe.weights:
        raise UsageError(f"{recipe.model} brings its weights: leave --weights out")
    return any_transformers.load(recipe.model), "from its folder"


def _listed(entry: ModelEntry, recipe: Recipe, data: ItemData) -> tuple[nn.Module, str]:
    entry.fits(TASK)
    file, words = weights_of(entry, recipe.weights, data_registry.known_as(recipe.data.name)) or (None, "from torchvision")
    if file is None and entry.published is None:
        raise EngineError(f"{entry.name} has no weights for {data.name}: give --weights FILE, or data that it has weights for")
    side = _side(data)
    if file is None:
        assert entry.published is not None
        from engine.models.torchvision_build import published_state

        model = entry.build(_CLASSES, side, image_models.stem_of(entry, recipe, None, None))
        published = published_state(entry.published, "give --weights FILE")
        fill(model, published, f"torchvision's weights ({entry.published.file})", entry.name, data.name)
        return model, words
    found = read_checkpoint(file)
    stem = entry.stem(image_models.stem_of(entry, recipe, file, found.tensors), side or 0)
    model = entry.build(_outputs(entry.build(_CLASSES, side, stem), found.tensors), side, stem)
    load_state(model, found.tensors, file, entry.name, data.name)
    return model, words + found.said


def _outputs(model: nn.Module, state: Mapping[str, Tensor]) -> int:
    """The outputs of the network that ``state`` is of: the size of its last parameter."""
    last = state.get(list(model.state_dict())[-1])
    return len(last) if last is not None and last.dim() else _CLASSES


def _side(data: ItemData) -> int | None:
    """The height of the data's images; None for what are none."""
    inputs = data.train.read([0]).inputs
    return int(inputs.shape[-2]) if isinstance(inputs, Tensor) and inputs.dim() == 4 else None
