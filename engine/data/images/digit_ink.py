"""The digits that scikit-learn ships, and the ink that each takes: a number of its own scale to be predicted of an image."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from engine.data.images.digit_items import held_against
from engine.data.items import ItemData


def load(part: Any) -> ItemData:
    """Images float32 (3, 32, 32) in the splits of ``digits``, and their ink float32 (1,): the sum of the grey levels (0..16) of a scan's 64
    pixels, about 220 to 430."""
    return held_against("digit-ink", ("ink",), _ink, {})


def _ink(images: Tensor, classes: Tensor) -> Tensor:
    return images[:, :1].float().mean((2, 3)) * (64 * 16 / 255)
