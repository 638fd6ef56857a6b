"""A small network for rows of numbers."""

from __future__ import annotations

import torch
from torch import Tensor, nn

_FEATURES, _WIDTH = 10, 64


class MLP(nn.Module):
    """Features (N, 10) to numbers (N, outputs)."""

    def __init__(self, outputs: int = 1) -> None:
        super().__init__()
        self.fc1 = nn.Linear(_FEATURES, _WIDTH)
        self.fc2 = nn.Linear(_WIDTH, _WIDTH)
        self.fc3 = nn.Linear(_WIDTH, outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.fc1(x))
        x = torch.relu(self.fc2(x))
        return self.fc3(x)  # type: ignore[no-any-return]
