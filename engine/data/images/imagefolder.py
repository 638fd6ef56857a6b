"""A folder of images, one subfolder a class, divided into splits by its folders or by a fixed seed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from engine.data.images.base import Data, Split, Subset
from engine.data.images.image_files import SUFFIXES, FileSplit, frame_size
from engine.data.images.splitting import Indices, permutation, require_images, share, take
from engine.data.images.transform import MEAN, STD, Transform
from engine.errors import EngineError, UsageError

SPLIT_SEED = 224
TEST_SHARE, VALIDATION_SHARE = 0.2, 0.1
VALIDATION_NAMES = ("validation", "val", "valid")

Listing = dict[str, list[str]]


def load(folder: Path | None = None, size: int | None = None, transform: Transform | None = None) -> Data:
    """Images by class below ``folder``, read from disk batch by batch.

    Layouts: ``train/<class>/*`` with ``test/<class>/*`` and ``validation/<class>/*`` beside it, or ``<class>/*`` alone.
    A split that has no folder is taken from the training images by a fixed seed with the classes balanced: a fifth for
    test, a tenth for validation. With ``size`` the shorter side is resized to it and the middle ``size`` x ``size``
    kept; ``transform`` says it in full, and ``size`` wins over its pixels; without either, all images must have the size
    of the first. Whether a mirrored image keeps its class is not known,
    so ``flip`` is False. ``UsageError`` without a folder or for a ``size`` under 1; ``EngineError`` for a folder
    without images by class, an empty split, or splits whose classes differ.
    """
    if folder is None:
        raise UsageError("imagefolder needs a folder of images: give --data DIR")
    if size is not None and size < 1:
        raise UsageError(f"data.size {size} leaves no image of {folder}: give a number of pixels, such as 224")
    trains = (folder / "train").is_dir() and bool(_subfolders(folder / "train"))
    top = folder / "train" if trains else folder
    listing = _list_classes(top)
    classes = tuple(listing)
    given = {"test": folder / "test", "validation": _first_folder(folder / name for name in VALIDATION_NAMES)} if trains else {}
    listings = {name: _list_split(place, classes, top) for name, place in given.items() if place is not None and place.is_dir()}

    first = next(iter(listing.values()))[0]
    if size is not None:
        transform = replace(transform, size=size, resize=size) if transform else Transform(size, size)
    height, width = (transform.size, transform.size) if transform else frame_size(first)
    splits = _divide(listing, listings, (height, width), transform)
    require_images({name: len(split) for name, split in splits.items()}, str(folder))
    return Data(
        name=folder.resolve().name,
        classes=classes,
        shape=(3, height, width),
        mean=transform.mean if transform else MEAN,
        std=transform.std if transform else STD,
        train=splits["train"],
        validation=splits["validation"],
        test=splits["test"],
        flip=False,
        pad=max(1, min(height, width) // 8),
        transform=transform,
    )


def _divide(listing: Listing, given: dict[str, Listing], frame: tuple[int, int], transform: Transform | None) -> dict[str, Split]:
    whole = _file_split(listing, frame, transform)
    labels: Indices = whole.labels.numpy()
    rest = permutation(len(labels), SPLIT_SEED)
    total = len(rest)
    splits: dict[str, Split] = {}
    for name, fraction in (("test", TEST_SHARE), ("validation", VALIDATION_SHARE)):
        if name in given:
            own = _file_split(given[name], frame, transform)
            splits[name] = Subset(own, torch.from_numpy(permutation(len(own), SPLIT_SEED)))
        else:
            drawn, rest = take(rest, labels, min(len(rest), share(total, fraction)), SPLIT_SEED)
            splits[name] = Subset(whole, torch.from_numpy(drawn))
    return {"train": Subset(whole, torch.from_numpy(rest)), **splits}


def _file_split(listing: Listing, frame: tuple[int, int], transform: Transform | None) -> FileSplit:
    labels = np.repeat(np.arange(len(listing), dtype=np.int64), [len(paths) for paths in listing.values()])
    return FileSplit(tuple(path for paths in listing.values() for path in paths), torch.from_numpy(labels), frame, transform)


def _subfolders(folder: Path) -> list[Path]:
    """Subfolders by name."""
    return sorted((entry for entry in _visible(folder) if entry.is_dir()), key=lambda entry: entry.name)


def _first_folder(places: Iterable[Path]) -> Path | None:
    return next((place for place in places if place.is_dir()), None)


def _list_classes(top: Path) -> Listing:
    """Class name -> paths of its images, both sorted, each class with at least one."""
    listing = {place.name: _list_images(place) for place in _subfolders(top)}
    if len(listing) < 2:
        raise EngineError(f"{top} has {len(listing)} class folders: put the images into one folder a class, {top}/CLASS/IMAGE, two or more")
    for name, paths in listing.items():
        if not paths:
            endings = ", ".join(SUFFIXES)
            raise EngineError(
                f"class folder {top / name} holds no images ({endings}): add some or remove it; folders below it are not read"
            )
    return listing


def _list_split(place: Path, classes: tuple[str, ...], top: Path) -> Listing:
    listing = {folder.name: _list_images(folder) for folder in _subfolders(place)}
    require_images({place.name: sum(len(paths) for paths in listing.values())}, str(place))
    for name in sorted(set(classes) ^ set(listing)):
        lacks, has = (place, top) if name in classes else (top, place)
        raise EngineError(f"{lacks} has no class {name!r} but {has} has: give both the same class folders")
    return listing


def _list_images(folder: Path) -> list[str]:
    return sorted(str(entry) for entry in _visible(folder) if entry.suffix.lower() in SUFFIXES)


def _visible(folder: Path) -> list[Path]:
    """What is in ``folder``; a hidden entry is a tool's, never a class or an image."""
    try:
        return [entry for entry in folder.iterdir() if not entry.name.startswith(".")]
    except OSError as error:
        raise EngineError(f"folder {folder} cannot be listed ({error.strerror}): check its permissions") from error
