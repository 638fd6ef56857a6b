"""A small U-Net: a class for each pixel."""

from __future__ import annotations

import torch
from torch import Tensor, nn

_WIDTHS = (8, 16, 32, 64)


class Twice(nn.Module):
    """Two 3×3 convolutions, each with batch normalization and ReLU."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(x)))


class Up(nn.Module):
    """A transposed convolution that doubles the resolution, joined with what the way down kept there."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(inputs, outputs, 2, stride=2)
        self.twice = Twice(2 * outputs, outputs)

    def forward(self, x: Tensor, kept: Tensor) -> Tensor:
        return self.twice(torch.cat([self.up(x), kept], 1))  # type: ignore[no-any-return]


class UNet(nn.Module):
    """Images (N, 3, H, W), sides divisible by 8, to logits (N, classes, H, W) (Ronneberger et al. 2015, arXiv:1505.04597)."""

    def __init__(self, classes: int = 11) -> None:
        super().__init__()
        first, second, third, last = _WIDTHS
        self.down1, self.down2, self.down3 = Twice(3, first), Twice(first, second), Twice(second, third)
        self.bottom = Twice(third, last)
        self.up3, self.up2, self.up1 = Up(last, third), Up(third, second), Up(second, first)
        self.head = nn.Conv2d(first, classes, 1)
        self.pool = nn.MaxPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        first = self.down1(x)
        second = self.down2(self.pool(first))
        third = self.down3(self.pool(second))
        x = self.bottom(self.pool(third))
        x = self.up1(self.up2(self.up3(x, third), second), first)
        return self.head(x)  # type: ignore[no-any-return]
