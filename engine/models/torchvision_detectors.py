"""torchvision's detectors by name. Torch-free until one is built."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

DETECTORS = {
    "fasterrcnn_resnet50_fpn": "Faster R-CNN: proposals, then a class and a box for each",
    "fasterrcnn_resnet50_fpn_v2": "Faster R-CNN with deeper heads",
    "fasterrcnn_mobilenet_v3_large_fpn": "Faster R-CNN on MobileNet v3",
    "fasterrcnn_mobilenet_v3_large_320_fpn": "Faster R-CNN on MobileNet v3, for images of 320 pixels",
    "fcos_resnet50_fpn": "FCOS: a class and a box for each cell, without anchors",
    "retinanet_resnet50_fpn": "RetinaNet: a class and a box for each anchor, focal loss",
    "retinanet_resnet50_fpn_v2": "RetinaNet with group normalization in its heads",
    "ssd300_vgg16": "SSD: boxes on six scales of VGG-16",
    "ssdlite320_mobilenet_v3_large": "SSDlite: boxes on six scales of MobileNet v3",
    "maskrcnn_resnet50_fpn": "Mask R-CNN: its boxes are measured",
    "maskrcnn_resnet50_fpn_v2": "Mask R-CNN with deeper heads: its boxes are measured",
    "keypointrcnn_resnet50_fpn": "Keypoint R-CNN: its boxes are measured",
}


def build(classes: int, name: str) -> nn.Module:
    """The detector with random weights, for ``classes`` beside the background."""
    from torchvision.models import get_model_builder

    model: nn.Module = get_model_builder(name)(weights=None, weights_backbone=None, num_classes=classes + 1)
    return model
