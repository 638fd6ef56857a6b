"""A folder of images and masks as data for segmentation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from engine.data.images.imagefolder import class_names
from engine.data.images.preparation import preparation
from engine.data.items import ItemData, ItemSplit, SplitName
from engine.data.masks.layouts import find
from engine.data.masks.mask_files import IGNORED, MaskSplit, Pair, read_mask
from engine.data.splits import completed
from engine.errors import EngineError

# Pairs of a split that are looked at before anything is measured: for sizes and the numbers of the classes.
_LOOKED_AT = 2000
_LARGEST = 512
_FEW = 32


@dataclass(frozen=True)
class Survey:
    """What a look at pairs has shown: the sizes (W, H) of masks, which are those of their images; the numbers in them; how many images
    are turned."""

    sizes: tuple[tuple[int, int], ...]
    numbers: frozenset[int]
    turned: int


def load(place: Path, part: Any) -> ItemData:
    """Images and masks below ``place`` (see ``layouts.find``), read from disk batch by batch. Classes are named by the file
    ``part.classes``; without it they are the numbers in the masks. 255 is not measured, but in masks that hold 0 and 255 alone it is the
    class 1. Raises EngineError in one line, with the file, for masks that do not fit."""
    layout = find(place)
    surveys = {split: _survey(_some(pairs)) for split, pairs in layout.splits.items()}
    numbers = frozenset().union(*(survey.numbers for survey in surveys.values()))
    names = class_names(part.classes) if part.classes else None
    whites = numbers == {0, IGNORED} and (names is None or len(names) == 2)
    labels = names or (("background", "foreground") if whites else _numbered(numbers, place))
    sizes = [size for survey in surveys.values() for size in survey.sizes]
    prepared, notes = preparation(part, sizes, place, _LARGEST)
    given: dict[SplitName, ItemSplit] = {split: MaskSplit(pairs, prepared, len(labels), whites) for split, pairs in layout.splits.items()}
    splits, origin = completed(given, "images", str(place))
    said = (*layout.notes, *notes, *_said(surveys, labels, whites), *origin)
    about = {**prepared.about(), "classes": len(labels), "classes_named": names is not None}
    return ItemData(place.resolve().name, splits["train"], splits["validation"], splits["test"], len(labels), tuple(labels), about, said)


def _some(pairs: Sequence[Pair]) -> Sequence[Pair]:
    return pairs[:: max(1, -(-len(pairs) // _LOOKED_AT))]


def _survey(pairs: Sequence[Pair]) -> Survey:
    sizes, numbers, turned = [], set(), 0
    for pair in pairs:
        mask = read_mask(pair.mask)
        size = (mask.shape[1], mask.shape[0])
        turned += pair.upright(size)
        sizes.append(size)
        numbers |= set(np.unique(mask).tolist())
    return Survey(tuple(sizes), frozenset(numbers), turned)


def _numbered(numbers: frozenset[int], place: Path) -> tuple[str, ...]:
    """The classes that masks without a list of names tell of. Raises EngineError for numbers that are none of classes."""
    measured = numbers - {IGNORED}
    if not measured or min(measured) < 0:
        raise EngineError(f"the masks of {place} hold no class ({IGNORED} is not measured): give class numbers from 0")
    count = max(measured) + 1
    if count > _FEW and count > 2 * len(measured):
        some = ", ".join(map(str, sorted(measured)[:6])) + (" …" if len(measured) > 6 else "")
        raise EngineError(
            f"the masks of {place} hold {len(measured)} numbers up to {count - 1} ({some}): number the classes from 0, or name all of them "
            "with --classes FILE"
        )
    return tuple(map(str, range(max(count, 2))))


def _said(surveys: Mapping[SplitName, Survey], labels: Sequence[str], whites: bool) -> list[str]:
    notes = [f"masks hold 0 and {IGNORED} alone: {IGNORED} is the class {labels[1]}"] if whites else []
    for split, survey in surveys.items():
        there = {1 if whites and number == IGNORED else number for number in survey.numbers}
        absent = [label for number, label in enumerate(labels) if number not in there]
        if absent:
            some = ", ".join(absent[:3]) + (" …" if len(absent) > 3 else "")
            notes.append(f"{split}: no pixels of {len(absent)} of {len(labels)} classes ({some})")
        if survey.turned:
            notes.append(f"{split}: {survey.turned:,} images are turned as their EXIF data ask, since their masks lie so")
    return notes
