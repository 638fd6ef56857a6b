"""Scenes of several handwritten digits each, with a box around every digit: made from scikit-learn's scans, without a network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from engine.data.boxes.base import MemoryImages, Shifted, Target, target
from engine.data.images import digits
from engine.data.images.base import Split
from engine.data.items import ItemData, SplitName
from engine.errors import UsageError

Array = npt.NDArray[np.float64]
Box = tuple[int, int, int, int]

SIDE = 64
SCENES: dict[SplitName, int] = {"train": 1600, "validation": 160, "test": 300}
_SEEDS: dict[SplitName, int] = {"train": 961, "validation": 962, "test": 963}
_FEWEST, _MOST = 1, 4
_SMALLEST, _LARGEST = 16, 30
# Ink above this part of white belongs to the digit.
_INK = 0.2
# Digits may touch, and no more than that: a covered digit has no right answer.
_OVERLAP = 0.1
_TRIES = 20


def load(part: Any) -> ItemData:
    """1,600 training, 160 validation and 300 test scenes of 64×64 pixels with one to four digits of 16 to 30 pixels, in colours of their
    own on a dark ground with noise. A scene of a split shows scans of that split of ``digits`` alone. Raises UsageError for options that
    mean nothing to it."""
    for option in ("size", "crop", "interpolation", "classes"):
        if getattr(part, option, None) is not None:
            raise UsageError(f"data set digit-boxes takes no {option} (data.{option} is {getattr(part, option)}): leave it out")
    splits = _splits()
    return ItemData(
        "digit-boxes", splits["train"], splits["validation"], splits["test"], outputs=10, labels=tuple("0123456789"),
        about={"size": [SIDE, SIDE]}, augment=Shifted(4),
    )  # fmt: skip


@lru_cache(maxsize=1)
def _splits() -> Mapping[SplitName, MemoryImages]:
    scans = digits.load()
    return {name: _scenes(scans.split(name), count, _SEEDS[name]) for name, count in SCENES.items()}


def _scenes(scans: Split, count: int, seed: int) -> MemoryImages:
    images, labels = scans.read(torch.arange(len(scans)))
    grey = images[:, 0].numpy().astype(np.float64) / 255
    # numpy guarantees this stream for good: the scenes are the same next year.
    random = np.random.RandomState(seed)
    made = [_scene(grey, labels.tolist(), random) for _ in range(count)]
    return MemoryImages(torch.from_numpy(np.stack([scene for scene, _ in made])), tuple(boxes for _, boxes in made))


def _scene(grey: Array, labels: Sequence[int], random: np.random.RandomState) -> tuple[npt.NDArray[np.uint8], Target]:
    canvas: Array = random.uniform(0, 0.25, (3, 1, 1)) + random.normal(0, 0.04, (3, SIDE, SIDE))
    boxes: list[Box] = []
    classes: list[int] = []
    for _ in range(random.randint(_FEWEST, _MOST + 1)):
        which, side = int(random.randint(len(grey))), int(random.randint(_SMALLEST, _LARGEST + 1))
        colour = random.uniform(0.5, 1, (3, 1, 1))
        scaled = _bilinear(grey.shape[1], side)
        ink = scaled @ grey[which] @ scaled.T
        left, top, right, bottom = _around(ink)
        ink = ink[top:bottom, left:right]
        place = _free(right - left, bottom - top, boxes, random)
        if place is None:
            continue
        x, y = place
        box = (x, y, x + right - left, y + bottom - top)
        under = canvas[:, y : box[3], x : box[2]]
        canvas[:, y : box[3], x : box[2]] = under * (1 - ink) + colour * ink
        boxes.append(box)
        classes.append(labels[which])
    return (canvas.clip(0, 1) * 255).round().astype(np.uint8), target(boxes, classes)


@lru_cache
def _bilinear(before: int, after: int) -> Array:
    """The matrix (after, before) that scales a side of ``before`` pixels, the middles of the first and the last kept in their places."""
    places = ((np.arange(after) + 0.5) * before / after - 0.5).clip(0, before - 1)
    low = np.floor(places).astype(np.int64).clip(0, before - 2)
    matrix = np.zeros((after, before))
    matrix[np.arange(after), low] = 1 - (places - low)
    matrix[np.arange(after), low + 1] = places - low
    return matrix


def _around(ink: Array) -> Box:
    """The box around what is written."""
    rows = np.flatnonzero((ink > _INK).any(axis=1))
    columns = np.flatnonzero((ink > _INK).any(axis=0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def _free(width: int, height: int, boxes: list[Box], random: np.random.RandomState) -> tuple[int, int] | None:
    """A place for a digit that covers no other; None where there is none among some that are drawn."""
    taken: Array = np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
    for _ in range(_TRIES):
        x, y = int(random.randint(SIDE - width + 1)), int(random.randint(SIDE - height + 1))
        across = np.minimum(taken[:, 2], x + width) - np.maximum(taken[:, 0], x)
        down = np.minimum(taken[:, 3], y + height) - np.maximum(taken[:, 1], y)
        shared = across.clip(0) * down.clip(0)
        smaller = np.minimum((taken[:, 2] - taken[:, 0]) * (taken[:, 3] - taken[:, 1]), width * height)
        if (shared <= _OVERLAP * smaller).all():
            return x, y
    return None
