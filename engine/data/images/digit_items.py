"""The digits of ``digits``, held against something else than their class."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from engine.data.images import digits
from engine.data.images.preparation import normalized
from engine.data.items import SPLIT_NAMES, ItemData, Items, MemoryItems


def held_against(name: str, labels: tuple[str, ...], targets: Callable[[Tensor, Tensor], Tensor], about: Mapping[str, Any]) -> ItemData:
    """Images float32 (3, 32, 32) in the splits of ``digits``, and the ``targets`` of images uint8 (N, 3, 32, 32) and classes (N,)."""
    scans = digits.load()
    splits = {}
    for split in SPLIT_NAMES:
        images, classes = scans.split(split).read(torch.arange(scans.count(split)))
        splits[split] = MemoryItems(Items(normalized(images, scans.mean, scans.std), targets(images, classes)))
    about = {"mean": list(scans.mean), "std": list(scans.std), **about}
    return ItemData(name, splits["train"], splits["validation"], splits["test"], len(labels), labels, about)
