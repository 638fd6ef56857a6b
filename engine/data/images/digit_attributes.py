"""The digits that scikit-learn ships, and what holds for each: six attributes of its number, and one of how it was written."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from engine.data.images.digit_items import held_against
from engine.data.items import ItemData

_HOLDS = {
    "even": (0, 2, 4, 6, 8), "prime": (2, 3, 5, 7), "above four": (5, 6, 7, 8, 9), "has a loop": (0, 6, 8, 9),
    "divisible by three": (0, 3, 6, 9), "square": (0, 1, 4, 9),
}  # fmt: skip
LABELS = (*_HOLDS, "bold")
# The mean grey level of the median scan.
_BOLD = 77.7


def load(part: Any) -> ItemData:
    """Images float32 (3, 32, 32) in the splits of ``digits``, and labels float32 (7,), 1 where they hold."""
    return held_against("digit-attributes", LABELS, _targets, {"labels": len(LABELS)})


def _targets(images: Tensor, classes: Tensor) -> Tensor:
    columns = [torch.isin(classes, torch.tensor(numbers)) for numbers in _HOLDS.values()]
    return torch.stack([*columns, images.float().mean((1, 2, 3)) > _BOLD], 1).float()
