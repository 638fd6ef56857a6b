"""A small CNN for images of any size: what it finds is averaged over the image."""

from __future__ import annotations

import torch
from torch import Tensor, nn

_WIDTHS = (16, 32, 64, 64)


class TinyCNN(nn.Module):
    """Images (N, 3, H, W), 8 pixels a side or more, to numbers (N, outputs); 62,039 parameters and statistics at seven outputs."""

    def __init__(self, outputs: int = 7) -> None:
        super().__init__()
        first, second, third, last = _WIDTHS
        self.conv1, self.bn1 = nn.Conv2d(3, first, 3, padding=1, bias=False), nn.BatchNorm2d(first)
        self.conv2, self.bn2 = nn.Conv2d(first, second, 3, padding=1, bias=False), nn.BatchNorm2d(second)
        self.conv3, self.bn3 = nn.Conv2d(second, third, 3, padding=1, bias=False), nn.BatchNorm2d(third)
        self.conv4, self.bn4 = nn.Conv2d(third, last, 3, padding=1, bias=False), nn.BatchNorm2d(last)
        self.pool, self.average = nn.MaxPool2d(2), nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(last, outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(torch.relu(self.bn1(self.conv1(x))))
        x = self.pool(torch.relu(self.bn2(self.conv2(x))))
        x = self.pool(torch.relu(self.bn3(self.conv3(x))))
        x = torch.relu(self.bn4(self.conv4(x)))
        return self.fc(torch.flatten(self.average(x), 1))  # type: ignore[no-any-return]
