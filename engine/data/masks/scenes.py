"""Scenes of several digits, made from the scans that scikit-learn ships: images with a mask, the same on every machine."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from engine.data.images import digits
from engine.data.images.preparation import normalized
from engine.data.items import ItemData, Items, MemoryItems, SplitName

Pixels = npt.NDArray[Any]
SIDE = 64
COUNTS: dict[SplitName, int] = {"train": 900, "validation": 100, "test": 200}
LABELS = ("background", *"0123456789")
SEED = 6464
_LEAST, _MOST = 18, 30
# Of the brightest grey level: what belongs to a digit.
_INK = 0.35
_MEAN, _STD = (0.36, 0.36, 0.36), (0.24, 0.24, 0.24)


def load(part: Any) -> ItemData:
    """Images float32 (3, 64, 64) of two to four digits in colours on a noisy ground, and masks int64 (64, 64): 0 for the ground, a digit's
    class is its number plus 1. Scans of digits' training split make the training scenes, those of its test split the scenes for test."""
    scans = digits.load()
    splits = {}
    for number, (name, count) in enumerate(COUNTS.items()):
        images, labels = scans.split(name).read(torch.arange(scans.count(name)))
        pictures, masks = scenes(images[:, 0], labels, count, SEED + number)
        splits[name] = MemoryItems(Items(normalized(pictures, _MEAN, _STD), masks))
    about = {"mean": list(_MEAN), "std": list(_STD), "classes": len(LABELS), "classes_named": True}
    return ItemData("digit-scenes", splits["train"], splits["validation"], splits["test"], len(LABELS), LABELS, about)


def scenes(scans: Tensor, labels: Tensor, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """``count`` scenes as images uint8 (N, 3, 64, 64) and masks int64 (N, 64, 64), of ``scans`` uint8 (M, H, W) with ``labels`` (M,)."""
    # numpy keeps the stream of RandomState for good.
    random = np.random.RandomState(seed)
    drawn = [_scene(scans.numpy(), labels.numpy(), random) for _ in range(count)]
    images, masks = (np.stack(part) for part in zip(*drawn, strict=True))
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(), torch.from_numpy(masks)


def _scene(scans: Pixels, labels: Pixels, random: np.random.RandomState) -> tuple[Pixels, Pixels]:
    image = random.uniform(0, 0.45, 3) + random.normal(0, 0.04, (SIDE, SIDE, 3))
    mask = np.zeros((SIDE, SIDE), dtype=np.int64)
    taken = np.zeros((SIDE, SIDE), dtype=bool)
    for _ in range(random.randint(2, 5)):
        which, side = random.randint(len(scans)), random.randint(_LEAST, _MOST + 1)
        colour, place = random.uniform(0.6, 1.0, 3), _free(taken, side, random)
        taken[place] = True
        scan = np.asarray(Image.fromarray(scans[which]).resize((side, side), Image.Resampling.BILINEAR)) / 255
        image[place] = image[place] * (1 - scan[..., None]) + colour * scan[..., None]
        mask[place] = np.where(scan > _INK, labels[which] + 1, mask[place])
    return np.round(image.clip(0, 1) * 255).astype(np.uint8), mask


def _free(taken: Pixels, side: int, random: np.random.RandomState) -> tuple[slice, slice]:
    """The square where the least is taken, of some that are drawn."""
    corners = random.randint(0, SIDE - side + 1, (12, 2)).tolist()
    places = [(slice(top, top + side), slice(left, left + side)) for top, left in corners]
    return min(places, key=lambda place: int(taken[place].sum()))
