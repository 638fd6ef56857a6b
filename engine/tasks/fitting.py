"""Whether a model and data fit together, told in one line before any work begins."""

from __future__ import annotations

import inspect

import torch
from torch import Tensor, nn

from engine.data import registry as data_registry
from engine.data.images.base import Data
from engine.errors import EngineError, one_line
from engine.models import custom
from engine.models.registry import ModelEntry, find
from engine.models.transform import Transform
from engine.models.vision_models import is_vision
from engine.models.vision_models import transform_of as vision_transform


def transform_of(model: str) -> Transform | None:
    """What the model expects of photographs; None where it does not say. Raises UsageError for an unknown name."""
    if is_vision(model):
        return vision_transform(model)
    published = None if custom.is_custom(model) else find(model).published
    return published.transform if published else None


def first_images(data: Data) -> Tensor:
    """The first images of the training split, normalized. Raises EngineError where there are none."""
    example, _ = next(data.batches("train", 8, limit=8), (None, None))
    if example is None:
        raise EngineError(f"the calibration set is empty: the training split of {data.name} holds no images: use other data")
    return example


def fits(entry: ModelEntry, data: Data) -> None:
    """Raises EngineError when the model does not take the data's images."""
    if entry.shape is not None and entry.shape != data.shape:
        raise EngineError(f"{data.name} has images of {_size(data.shape)} and {entry.name} takes {_size(entry.shape)}: {_resize(data)}")


def check(model: nn.Module, example: Tensor, data: Data, name: str) -> None:
    """Raises EngineError when ``model``, in eval mode, does not turn the images into finite logits of the data's classes."""
    if not torch.isfinite(example).all():
        raise EngineError(f"{data.name} gives NaN or infinity: check data.mean and data.std")
    with torch.no_grad():
        try:
            logits = model(example)
        except Exception as error:
            text = one_line(error, 160)
            if other := _other_precision(model):
                raise EngineError(f"{name} holds {other}, and the images are float32: return model.float() from its factory") from error
            raise EngineError(f"{name} does not take images of {_size(data.shape)} ({text}): {_advice(model, data, text)}") from error
    if not isinstance(logits, Tensor) or logits.dim() != 2:
        shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise EngineError(f"{name} returns {shape}, not logits of shape (N, classes): wrap it in a factory that does")
    if logits.shape[1] != len(data.classes):
        raise EngineError(f"{name} knows {logits.shape[1]} classes and {data.name} has {len(data.classes)}: use other data or another head")
    if not torch.isfinite(logits).all():
        raise EngineError(f"{name} gives NaN or infinity on the first images: check its weights and data.mean, data.std")


def _other_precision(model: nn.Module) -> str:
    """A parameter that is a number of another width than float32, with its type; empty where there is none."""
    found = next(((path, p) for path, p in model.named_parameters() if p.is_floating_point() and p.dtype != torch.float32), None)
    return f"{found[0]} in {str(found[1].dtype).removeprefix('torch.')}" if found else ""


def _advice(model: nn.Module, data: Data, text: str) -> str:
    """What helps a model that fails on the images with ``text``."""
    named = inspect.signature(model.forward).parameters.values()
    needed = [p.name for p in named if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    if len(needed) > 1:
        return f"it takes {', '.join(needed)}: give a task of your own that yields them (--task FILE:FACTORY)"
    first = next(((path, m) for path, m in model.named_modules() if isinstance(m, nn.Conv2d)), None)
    if first is not None and "channels" in text and first[1].in_channels != data.shape[0]:
        path, layer = first
        return f"{path} takes {layer.in_channels} channels and the images have {data.shape[0]}: convert them in the factory's forward"
    return _resize(data)


def _size(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape))


def _resize(data: Data) -> str:
    return "give --size (data.size), or use another model" if data.name not in data_registry.ENTRIES else "use other data or another model"
