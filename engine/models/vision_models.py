"""Image classifiers of transformers (ViT, DINOv2, ConvNeXt, Swin …) from a folder or the Hugging Face hub, with the sizes and the
normalization that their preprocessor says. Nothing that they bring is executed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from engine.errors import EngineError, one_line
from engine.models import hub
from engine.models.language_registry import hub_cache
from engine.models.text_models import read_model
from engine.models.text_registry import task_of_folder
from engine.models.transform import MEAN, STD, Interpolation, Transform, Triple
from engine.models.transformers_folder import look
from engine.models.transformers_load import quiet
from engine.reading import MB, read_json

# Of PIL's filters, by their numbers.
_RESAMPLING: Mapping[int, Interpolation] = {2: "bilinear", 3: "bicubic"}


def is_vision(name: str) -> bool:
    """Whether a model's name stands for an image classifier of transformers: a folder, or an id that is in the cache."""
    return ":" not in name and task_of_folder(name) == "classification"


class ImageLogits(nn.Module):
    """Images (N, 3, H, W) to logits (N, classes). ``unnamed`` says that these are taken in the order of the data's classes."""

    unnamed: bool = False

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor) -> Tensor:
        logits: Tensor = self.model(pixel_values=pixel_values).logits
        return logits


def load_vision(name: str, classes: Sequence[str], in_order: bool = False) -> ImageLogits:
    """The classifier with its outputs in the order of ``classes``, by the names of its labels; ``in_order`` says that they are in its own
    order. Outputs that were never named, as many as there are classes, are in the order of the classes: ``unnamed`` of the result says so.
    Raises EngineError, in one line, for a folder that is no such model, and for classes that it does not know."""
    place = place_of(name)
    with quiet():
        model = read_model(look(place, decoder=False), "AutoModelForImageClassification", "classification")
    names = [str(model.config.id2label[key]) for key in sorted(model.config.id2label)]
    unnamed = len(classes) == len(names) and names == [f"LABEL_{i}" for i in range(len(names))]
    if not unnamed and not (in_order and len(classes) == len(names)):
        _reorder(model, _places(names, classes, name), len(names), name)
    found = ImageLogits(model).eval()
    found.unnamed = unnamed and not in_order
    return found


def transform_of(name: str) -> Transform:
    """What the folder's ``preprocessor_config.json`` does to an image. Raises EngineError for one that cannot be read."""
    file = place_of(name) / "preprocessor_config.json"
    try:
        found = read_json(file, MB)
    except FileNotFoundError as error:
        raise EngineError(f"{name} has no preprocessor_config.json, which tells the size and the mean of its images: add it") from error
    except (OSError, ValueError) as error:
        raise EngineError(f"{file} cannot be read ({one_line(error, 80)}): copy or download it again") from error
    if not isinstance(found, dict):
        raise EngineError(f"{file} is not a JSON object: copy or download it again")
    return _transform(found, file)


def _transform(found: Mapping[str, Any], file: Path) -> Transform:
    resize = _side(found.get("size"))
    crop = _side(found.get("crop_size")) if found.get("do_center_crop", "crop_size" in found) else None
    if resize is None:
        raise EngineError(f"{file} does not say to which size images are scaled: give --size")
    size = crop or resize
    if "crop_pct" in found and isinstance(found.get("size"), dict) and "shortest_edge" in found["size"] and resize < 384:
        # ConvNeXt's: its size is that of the crop.
        size, resize = resize, int(resize / float(found["crop_pct"] or 224 / 256))
    if found.get("do_normalize", True):
        mean, std = _triple(found.get("image_mean"), MEAN), _triple(found.get("image_std"), STD)
    else:
        mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    return Transform(size, max(resize, size), _RESAMPLING.get(int(found.get("resample", 2) or 2), "bilinear"), mean, std)


def _side(size: Any) -> int | None:
    """The pixels of a size, which is a number, ``height`` and ``width`` or ``shortest_edge``."""
    if isinstance(size, dict):
        size = size.get("shortest_edge") or size.get("height")
    return size if isinstance(size, int) and 0 < size < 10_000 else None


def _triple(given: Any, otherwise: Triple) -> Triple:
    if isinstance(given, list) and len(given) == 3 and all(isinstance(value, int | float) for value in given):
        return (float(given[0]), float(given[1]), float(given[2]))
    return otherwise


def place_of(name: str) -> Path:
    """The folder that ``name`` stands for, fetched where it is an id. Raises EngineError as ``hub.fetch`` does."""
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    snapshots = hub_cache() / f"models--{name.replace('/', '--')}" / "snapshots"
    kept = next((place for place in sorted(snapshots.glob("*")) if (place / "preprocessor_config.json").is_file()), None)
    return kept or hub.fetch(name, decoder=False)


def _places(names: Sequence[str], classes: Sequence[str], name: str) -> list[int]:
    """The output of each class: by name, or by the first of several names of a label."""
    by_name = {label.lower(): i for i, label in reversed(list(enumerate(names)))}
    for i, label in reversed(list(enumerate(names))):
        by_name.setdefault(label.split(",")[0].strip().lower(), i)
    found = [by_name.get(one.lower(), by_name.get(one.replace("_", " ").lower())) for one in classes]
    if None in found:
        strange = [ascii(one_line(Exception(one), 40)) for one, place in zip(classes, found, strict=True) if place is None]
        some = ", ".join(ascii(label[:40]) for label in names[:4])
        raise EngineError(
            f"{len(strange)} of {len(classes)} classes are not {name}'s ({', '.join(strange[:3])}): it has {some} …; call the folders so"
        )
    return [place for place in found if place is not None]


def _reorder(model: Any, places: Sequence[int], labels: int, name: str) -> None:
    """Has the last linear layer give the outputs at ``places`` alone."""
    heads = [module for module in model.modules() if isinstance(module, nn.Linear) and module.out_features == labels]
    if not heads:
        raise EngineError(f"{name} has no linear layer of {labels} outputs at its end: its outputs cannot be put in the order of the data")
    head, index = heads[-1], torch.tensor(list(places))
    head.weight = nn.Parameter(head.weight[index].detach().clone(), requires_grad=False)
    if head.bias is not None:
        head.bias = nn.Parameter(head.bias[index].detach().clone(), requires_grad=False)
    head.out_features = len(places)
