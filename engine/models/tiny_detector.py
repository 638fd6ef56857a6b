"""A small one-stage detector without anchors, of the kind of FCOS (Tian et al. 2019, arXiv:1904.01355)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

_WIDTH = 64
# What a class scores before training (Lin et al. 2017, arXiv:1708.02002, section 4.1): almost all cells show nothing.
_PRIOR = 0.01
# Half of a box of the usual size, in cells.
_HALF = 1.7


class TinyDetector(nn.Module):
    """Images (N, 3, H, W), sides multiples of 8, to ``scores`` (N, classes, H/8, W/8), logits, and ``boxes`` (N, 4, H/8, W/8): the
    distances from the middle of a cell to the left, top, right and bottom of the object there, in cells."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Sequential(_conv(3, 16, 2), _conv(16, 32, 2), _conv(32, _WIDTH, 2))
        self.blocks = nn.Sequential(Block(_WIDTH), Block(_WIDTH))
        self.score_tower, self.box_tower = _conv(_WIDTH, _WIDTH), _conv(_WIDTH, _WIDTH)
        self.score_head = nn.Conv2d(_WIDTH, classes, 3, padding=1)
        self.box_head = nn.Conv2d(_WIDTH, 4, 3, padding=1)
        nn.init.normal_(self.score_head.weight, std=0.01)
        nn.init.constant_(self.score_head.bias, -math.log((1 - _PRIOR) / _PRIOR))  # type: ignore[arg-type]
        nn.init.normal_(self.box_head.weight, std=0.01)
        nn.init.constant_(self.box_head.bias, _HALF)  # type: ignore[arg-type]

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        x = self.blocks(self.stem(images))
        return {"scores": self.score_head(self.score_tower(x)), "boxes": self.box_head(self.box_tower(x))}


class Block(nn.Module):
    """Two convolutions with a shortcut (He et al. 2015, arXiv:1512.03385)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = _conv(width, width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.bn2(self.conv2(self.conv1(x))) + x)


def _conv(before: int, after: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(before, after, 3, stride, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU())
