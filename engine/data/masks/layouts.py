"""Where images and their masks lie: two folders, two for each split, or as in Pascal VOC."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from engine.data.images.image_files import SUFFIXES as IMAGES
from engine.data.items import SplitName
from engine.data.masks.mask_files import SUFFIXES as MASKS
from engine.data.masks.mask_files import Pair
from engine.data.splits import NAMES
from engine.errors import EngineError
from engine.plain_text import one_line
from engine.reading import MB, read_bytes

_IMAGES, _MASKS = ("images", "image", "imgs", "img"), ("masks", "mask", "annotations", "labels", "segmentations")
# What tools add to the name of an image for that of its mask.
_ENDINGS = ("_mask", "-mask", "_masks", "_label", "_labels", "_gt", "_seg", "_segmentation")
_VOC_IMAGES, _VOC_MASKS, _VOC_LISTS = "JPEGImages", "SegmentationClass", ("ImageSets", "Segmentation")
_LIST_LIMIT = 64 * MB


@dataclass(frozen=True)
class Layout:
    """The pairs of the splits that there are, and notes that say what was passed over."""

    splits: Mapping[SplitName, tuple[Pair, ...]]
    notes: tuple[str, ...] = ()


def find(place: Path) -> Layout:
    """The images and masks below ``place``. Raises EngineError where there are none, or two for one."""
    if not place.is_dir():
        raise EngineError(f"data {place} is a file: give the folder that holds images/ and masks/")
    if voc := _voc(place):
        return _of_voc(voc)
    notes: list[str] = []
    splits: dict[SplitName, tuple[Pair, ...]] = {}
    images, masks = _child(place, _IMAGES), _child(place, _MASKS)
    for split, names in NAMES.items():
        inner, outer = _child(place, names), (images and _child(images, names), masks and _child(masks, names))
        both = (_child(inner, _IMAGES), _child(inner, _MASKS)) if inner else outer
        if both[0] and both[1]:
            splits[split] = _pairs(both[0], both[1], f"{split}: ", notes)
    if "train" not in splits and images and masks:
        splits = {"train": _pairs(images, masks, "", notes)}
    if "train" not in splits:
        raise EngineError(
            f"{place} holds no images with masks: give images/ and masks/ with files of the same names, train/ and val/ or test/ with "
            f"both, or {_VOC_IMAGES}/ and {_VOC_MASKS}/ as in Pascal VOC"
        )
    return Layout(splits, tuple(notes))


def _pairs(images: Path, masks: Path, before: str, notes: list[str]) -> tuple[Pair, ...]:
    of_images, of_masks = _by_key(images, IMAGES), _by_key(masks, (*MASKS, ".jpg", ".jpeg"))
    for key in list(of_masks):
        ending = next((e for e in _ENDINGS if key.endswith(e) and key not in of_images), "")
        if ending and (bare := key.removesuffix(ending)) in of_images and bare not in of_masks:
            of_masks[bare] = of_masks.pop(key)
    found = tuple(Pair(of_images[key], of_masks[key]) for key in sorted(of_images.keys() & of_masks.keys()))
    if not found:
        raise EngineError(f"no image in {images} has a mask of its name in {masks}: give images/NAME.jpg a masks/NAME.png")
    for what, other, names in (
        ("images", "mask", of_images.keys() - of_masks.keys()),
        ("masks", "image", of_masks.keys() - of_images.keys()),
    ):
        if names:
            some = ", ".join(one_line(name, 60) for name in sorted(names)[:3]) + (" …" if len(names) > 3 else "")
            notes.append(f"{before}{len(names):,} {what} without {other} passed over ({some})")
    return found


def _by_key(folder: Path, suffixes: Sequence[str]) -> dict[str, str]:
    """Path below ``folder`` without suffix -> path. Raises EngineError for two files of one name."""
    found: dict[str, str] = {}
    for path in _files(folder):
        if path.suffix.lower() in suffixes:
            key = str(path.relative_to(folder).with_suffix(""))
            if key in found:
                raise EngineError(f"{found[key]} and {path} have one name: keep one of them")
            found[key] = str(path)
    return found


def _files(folder: Path) -> Iterator[Path]:
    for top, folders, names in os.walk(folder, onerror=_raise):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(top, name) for name in sorted(names) if not name.startswith("."))


def _raise(error: OSError) -> None:
    raise EngineError(f"folder {error.filename} cannot be listed ({error.strerror}): check its permissions") from error


def _child(folder: Path, names: Sequence[str]) -> Path | None:
    """The subfolder of the first of ``names`` that there is, in upper or lower case."""
    try:
        there = {entry.name.lower(): entry for entry in sorted(folder.iterdir(), reverse=True) if entry.is_dir()}
    except OSError as error:
        raise EngineError(f"folder {folder} cannot be listed ({error.strerror}): check its permissions") from error
    return next((there[name] for name in names if name in there), None)


def _voc(place: Path) -> Path | None:
    """The folder of Pascal VOC at ``place`` or below it."""
    below = sorted(place.glob("VOC20*"), reverse=True) + sorted(place.glob("VOCdevkit/VOC20*"), reverse=True)
    return next((top for top in (place, *below) if (top / _VOC_IMAGES).is_dir() and (top / _VOC_MASKS).is_dir()), None)


def _of_voc(top: Path) -> Layout:
    images, masks = top / _VOC_IMAGES, top / _VOC_MASKS
    lists = top.joinpath(*_VOC_LISTS)
    notes: list[str] = []
    splits: dict[SplitName, tuple[Pair, ...]] = {}
    of_images, of_masks = _by_key(images, IMAGES), _by_key(masks, MASKS)
    for split, names in NAMES.items():
        file = next((lists / f"{name}.txt" for name in names if (lists / f"{name}.txt").is_file()), None)
        if file is None and split == "train" and (lists / "trainval.txt").is_file():
            file = lists / "trainval.txt"
        if file is None:
            continue
        lines = _lines(file)
        if not any(name in of_masks for _, name in lines):
            notes.append(f"{split}: none of the {len(lines):,} images of {file.name} has a mask")
            continue
        splits[split] = tuple(_listed(file, number, name, of_images, of_masks) for number, name in lines)
    return Layout(splits, tuple(notes)) if splits else Layout({"train": _pairs(images, masks, "", notes)}, tuple(notes))


def _listed(file: Path, number: int, name: str, images: Mapping[str, str], masks: Mapping[str, str]) -> Pair:
    for what, there in ((_VOC_IMAGES, images), (_VOC_MASKS, masks)):
        if name not in there:
            raise EngineError(f"{file}, line {number}: {one_line(name, 60)} is not in {what}: add it, or take the line out")
    return Pair(images[name], masks[name])


def _lines(file: Path) -> list[tuple[int, str]]:
    """The names in a list, with the numbers of their lines."""
    try:
        text = read_bytes(file, _LIST_LIMIT).decode("utf-8-sig")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise EngineError(f"list {file} cannot be read ({reason}): give one name a line") from error
    return [(number, line.split()[0]) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
