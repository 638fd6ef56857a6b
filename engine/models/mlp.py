"""A small network for rows of numbers."""

from __future__ import annotations

import torch
from torch import Tensor, nn

_WIDTH = 64


class MLP(nn.Module):
    """Features (N, columns) of any scale to numbers (N, outputs): what it reads is first brought to a mean of 0 and a spread of 1."""

    def __init__(self, outputs: int = 1, features: int = 10) -> None:
        super().__init__()
        self.register_buffer("middle", torch.zeros(features))
        self.register_buffer("spread", torch.ones(features))
        self.fc1 = nn.Linear(features, _WIDTH)
        self.fc2 = nn.Linear(_WIDTH, _WIDTH)
        self.fc3 = nn.Linear(_WIDTH, outputs)

    def standardize(self, features: Tensor) -> None:
        """Take the mean and the spread of each column from ``features`` (N, columns); a column that is the same everywhere stays 0."""
        spread, middle = torch.std_mean(features.double(), 0, correction=0)
        self.middle = middle.float()
        self.spread = torch.where(spread > 0, spread, torch.ones_like(spread)).float()

    def forward(self, x: Tensor) -> Tensor:
        x = (x - self.middle) / self.spread
        x = torch.relu(self.fc1(x))
        x = torch.relu(self.fc2(x))
        return self.fc3(x)  # type: ignore[no-any-return]
