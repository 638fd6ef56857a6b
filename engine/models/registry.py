"""Names to factories. Importing this module costs nothing: factories are imported when they are called."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from engine.errors import EngineError, UsageError, nearest
from engine.models.torchvision import PUBLISHED, Published
from engine.models.torchvision_detectors import DETECTORS
from engine.models.torchvision_segmentation import SEGMENTERS, Segmenter

if TYPE_CHECKING:
    from torch import nn

Stem = Literal["auto", "small", "imagenet"]
# Images up to this many pixels wide would leave a stem for photographs as next to nothing.
SMALL_SIDE = 64
# Tasks that hold a model against itself alone.
OF_ANY_MODEL = ("fidelity",)
WEIGHTS = Path(__file__).parent / "weights"


@dataclass(frozen=True)
class ModelEntry:
    """``factory`` is ``module:callable``, or ``module:callable:name``, and takes the number of classes, and the name, with ``features`` the
    number of columns too; ``packaged`` maps a data set's name to the weights file that ships for it; ``shape`` is the (C, H, W) the model
    takes, None where it takes others too. ``published`` is what torchvision knows of its own classifiers, which have no ``factory``,
    ``segmenter`` what it knows of those for segmentation. ``task`` is what it is for, and ``others`` are further tasks that it takes;
    ``input`` says in a few words what is no image of one ``shape``; ``schedule`` are the fields of the training that it takes by the
    data's name, ``""`` for any other."""

    name: str
    description: str
    factory: str
    shape: tuple[int, int, int] | None = None
    packaged: Mapping[str, str] = field(default_factory=dict)
    published: Published | None = None
    segmenter: Segmenter | None = None
    task: str = "classification"
    others: tuple[str, ...] = ()
    schedule: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    input: str = ""
    features: bool = False

    def fits(self, task: str) -> None:
        """Raises UsageError where the model is for another task."""
        if task not in (self.task, *self.others, *OF_ANY_MODEL):
            raise UsageError(
                f"{self.name} is for {self.task}, and the task is {task}: use another model, or your own as path/file.py:factory"
            )

    def build(self, classes: int, side: int | None = None, stem: Stem = "imagenet", features: int | None = None) -> nn.Module:
        """The network with random weights, for ``classes`` and images of ``side`` pixels, or rows of ``features`` numbers. Raises
        UsageError for what it does not take."""
        model: nn.Module
        if self.published is not None:
            from engine.models import torchvision_build

            return torchvision_build.build(self.published, classes, side or self.published.transform.size, stem == "small")
        module, attribute, *name = self.factory.split(":")
        columns = {"features": features} if features and self.features else {}
        model = getattr(import_module(module), attribute)(classes, *name, **columns)
        return model

    def weights_for(self, data: str) -> Path | None:
        name = self.packaged.get(data)
        return WEIGHTS / name if name else None

    def stem(self, asked: Stem, side: int) -> Stem:
        """``small`` or ``imagenet`` for images of ``side`` pixels. Raises UsageError for a stem that the model does not have."""
        has_small = self.published is not None and self.published.has_small_stem
        if asked == "small" and not has_small:
            raise UsageError(f"{self.name} has no stem for small images: leave stem out, or use a model such as resnet18")
        if asked == "auto":
            return "small" if has_small and side <= SMALL_SIDE else "imagenet"
        return asked


# Of classifiers of images, whose last layer gives a number for each output.
_OF_IMAGES = ("multilabel", "regression")


def _of_torchvision(published: Published) -> ModelEntry:
    return ModelEntry(published.name, published.description, "", published=published, others=_OF_IMAGES)


def _segmenter(known: Segmenter) -> ModelEntry:
    factory = f"engine.models.torchvision_segmentation:build:{known.name}"
    fields = {"": {"epochs": 30, "batch": 8, "lr": 0.001, "optimizer": "adamw"}}
    return ModelEntry(known.name, known.description, factory, segmenter=known, task="segmentation", input="images", schedule=fields)


def _detector(name: str, description: str) -> ModelEntry:
    # Networks of this depth at a rate that they bear from random weights.
    schedule = {"epochs": 20, "batch": 8, "lr": 0.0003, "optimizer": "adamw"}
    return ModelEntry(name, description, f"engine.models.torchvision_detectors:build:{name}", task="detection", schedule={"": schedule})


ENTRIES: dict[str, ModelEntry] = {
    entry.name: entry
    for entry in (
        ModelEntry(
            name="simplecnn",
            description="two convolutions with batch normalization, two linear layers",
            factory="engine.models.simplecnn:SimpleCNN",
            shape=(3, 32, 32),
            others=_OF_IMAGES,
            packaged={"digits": "simplecnn-digits.safetensors", "cifar10": "simplecnn-cifar10.safetensors"},
        ),
        ModelEntry(
            name="mlp",
            description="three linear layers, for rows of numbers of any scale",
            factory="engine.models.mlp:MLP",
            task="regression",
            input="numbers",
            features=True,
            packaged={"diabetes": "mlp-diabetes.safetensors"},
            schedule={"": {"epochs": 60, "batch": 32, "lr": 0.003, "optimizer": "adamw"}},
        ),
        ModelEntry(
            name="unet",
            description="a small U-Net: convolutions down and transposed ones up, joined at each resolution",
            factory="engine.models.unet:UNet",
            task="segmentation",
            input="3×8n×8n",
            packaged={"digit-scenes": "unet-digit-scenes.safetensors"},
            schedule={"": {"epochs": 20, "batch": 16, "lr": 0.003, "optimizer": "adamw"}},
        ),
        ModelEntry(
            name="tinycnn",
            description="four convolutions with batch normalization, one linear layer over their average",
            factory="engine.models.tinycnn:TinyCNN",
            input="images",
            task="multilabel",
            others=("regression",),
            packaged={"digit-attributes": "tinycnn-digit-attributes.safetensors", "digit-ink": "tinycnn-digit-ink.safetensors"},
            schedule={"": {"epochs": 15, "batch": 32, "lr": 0.004, "optimizer": "adamw"}},
        ),
        ModelEntry(
            name="tiny-detector",
            description="scores and boxes of cells, without anchors: eleven convolutions, two shortcuts",
            factory="engine.models.tiny_detector:TinyDetector",
            task="detection",
            packaged={"digit-boxes": "tiny-detector-digit-boxes.safetensors"},
            schedule={"": {"epochs": 24, "batch": 32, "lr": 0.003, "optimizer": "adamw"}},
        ),
        *map(_segmenter, SEGMENTERS),
        *map(_of_torchvision, PUBLISHED),
        *(_detector(name, description) for name, description in DETECTORS.items()),
    )
}


def find(name: str) -> ModelEntry:
    """The entry of that name. Raises UsageError with the nearest names when there is none, EngineError for a path that leads to no
    model."""
    if name in ENTRIES:
        return ENTRIES[name]
    place = Path(name).expanduser()
    if (place / "config.json").is_file():
        raise EngineError(f"{name} is a folder of transformers, which this task does not take: give --task fidelity, or the task it is for")
    if place.is_dir():
        raise EngineError(f"{name} is a folder without config.json: give the folder of a language model, as save_pretrained writes it")
    if os.sep in name:
        raise EngineError(f"model {name} does not exist: give path/file.py:factory, a language model's folder, or OWNER/MODEL")
    raise UsageError(
        f"model {name!r} is not known: {_near(name)}; your own is package.module:factory, path/file.py:factory, or a language model's "
        "folder or OWNER/MODEL"
    )


def _near(name: str) -> str:
    # It imports this module.
    from engine.models.language_registry import ENTRIES as LANGUAGE

    hint = nearest(name.lower(), [*ENTRIES, *LANGUAGE])
    own = ", ".join((*(entry.name for entry in ENTRIES.values() if entry.published is None and entry.name not in DETECTORS), *LANGUAGE))
    return f"known: {own} and torchvision's classifiers, which `qtui models` lists" if hint.startswith("known:") else hint
