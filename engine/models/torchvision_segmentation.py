"""torchvision's networks for segmentation by name, and their published weights where they are in torch hub's cache. Torch-free until one
is built.

A test holds the table against the torchvision that is installed.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from engine.models.torchvision import cached_file

if TYPE_CHECKING:
    from torch import nn

# Pascal VOC's 20 classes and the background, which published weights know.
CLASSES = 21


@dataclass(frozen=True)
class Segmenter:
    """A network that torchvision builds, and its DEFAULT weights: the beginning of the ``file``'s name with its size in ``mib``."""

    name: str
    description: str
    file: str
    mib: float

    def cached(self) -> Path | None:
        """The file of these weights in torch hub's cache, or None."""
        return cached_file(self.file, self.mib)


SEGMENTERS = (
    Segmenter("fcn_resnet50", "FCN: a dilated ResNet, classes of its last features scaled up", "fcn_resnet50_coco", 135.009),
    Segmenter("fcn_resnet101", "FCN: a dilated ResNet, classes of its last features scaled up", "fcn_resnet101_coco", 207.711),
    Segmenter("deeplabv3_resnet50", "DeepLab v3: convolutions of several dilations side by side", "deeplabv3_resnet50_coco", 160.515),
    Segmenter("deeplabv3_resnet101", "DeepLab v3: convolutions of several dilations side by side", "deeplabv3_resnet101_coco", 233.217),
    Segmenter(
        "deeplabv3_mobilenet_v3_large", "DeepLab v3 on a dilated MobileNet v3", "deeplabv3_mobilenet_v3_large", 42.301,
    ),
    Segmenter("lraspp_mobilenet_v3_large", "LR-ASPP: a small head on a dilated MobileNet v3", "lraspp_mobilenet_v3_large", 12.49),
)  # fmt: skip


def build(classes: int, name: str) -> nn.Module:
    """The network with random weights; it returns a dict with the logits (N, classes, H, W) as ``out``."""
    from torchvision.models import get_model_builder

    model: nn.Module = get_model_builder(name)(weights=None, weights_backbone=None, num_classes=classes)
    return model
