"""A folder of images, one subfolder a class, divided into splits by its folders or by a fixed seed."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from engine.data.images.base import Data, Split, Subset
from engine.data.images.image_files import SUFFIXES, FileSplit, frame_size, turned
from engine.data.images.splitting import Indices, permutation, require_images, share, take
from engine.errors import EngineError, UsageError
from engine.models.transform import MEAN, STD, Interpolation, Transform
from engine.plain_text import one_line
from engine.reading import MB, read_bytes

SPLIT_SEED = 224
TEST_SHARE, VALIDATION_SHARE = 0.2, 0.1
VALIDATION_NAMES = ("validation", "val", "valid")
# What tools leave in a folder, and no class.
_OF_TOOLS = ("__macosx", "@eadir", "$recycle.bin")
_LOOKED_AT = 500

Listing = dict[str, list[str]]


@dataclass(frozen=True)
class Found:
    """The images of one folder by class, and what was passed over or read from further below."""

    listing: Listing
    others: Counter[str]
    below: int

    def __len__(self) -> int:
        return sum(map(len, self.listing.values()))


def load(
    folder: Path | None = None, size: int | None = None, transform: Transform | None = None, *, crop: int | None = None,
    interpolation: Interpolation | None = None, classes: str | None = None,
) -> Data:  # fmt: skip
    """Images by class below ``folder``, read from disk batch by batch; those in folders below a class's belong to it.

    Layouts: ``train/<class>/*`` with ``test/<class>/*`` and ``validation/<class>/*`` beside it, in upper or lower case, or
    ``<class>/*`` alone. Without a test folder half of the validation images are for test, where there are two or more; a split that is
    then still missing is taken from the training images by a fixed seed with the classes balanced: a fifth for test, a tenth
    for validation. With ``size`` the shorter side is resized to it and the middle ``crop`` x ``crop`` (``size`` x ``size``
    without ``crop``) kept; ``transform`` says it in full, and what is given here wins over it; without either, all images must
    have the size of the first. ``classes`` is a file with the names of all classes, one a line in the model's order; without it they
    are the training folders in order. Whether a mirrored image keeps its class is not known, so ``flip`` is False. ``notes`` of the
    result say what was passed over and where splits come from.

    ``UsageError`` without a folder or for a ``size`` or ``crop`` that leaves nothing; ``EngineError`` for a folder without images by
    class, an empty split, or a class that the training images, or the list of classes, do not have.
    """
    if folder is None:
        raise UsageError("imagefolder needs a folder of images: give --data DIR")
    transform = asked_transform(folder, size, crop, interpolation, transform)
    names = class_names(classes) if classes is not None else None
    top = _child(folder, ("train",))
    top = top if top is not None and _subfolders(top) else None
    given = {"test": _child(folder, ("test",)), "validation": _child(folder, VALIDATION_NAMES)} if top else {}
    main = _find(top or folder)
    known = names or tuple(name for name, paths in main.listing.items() if paths)
    if len(known) < 2:
        place = top or folder
        raise EngineError(
            f"{place} has {len(known)} class folders with images ({', '.join(SUFFIXES)}): put the images into one folder a class, "
            f"{place}/CLASS/IMAGE, two or more, or name all classes with --classes FILE"
        )
    founds = {"train": main} | {name: _find(place) for name, place in given.items() if place is not None}
    for name, found in founds.items():
        require_images({name: len(found)}, str(given.get(name, top or folder)))
        _check_names(found, known, classes, given.get(name) or top or folder)
    listings = {name: {c: found.listing.get(c, []) for c in known} for name, found in founds.items()}

    first = next(paths[0] for paths in listings["train"].values() if paths)
    height, width = (transform.size, transform.size) if transform else frame_size(first)
    splits, origin = _divide(listings.pop("train"), listings, (height, width), transform)
    require_images({name: len(split) for name, split in splits.items()}, str(folder))
    return Data(
        name=folder.resolve().name,
        classes=known,
        shape=(3, height, width),
        mean=transform.mean if transform else MEAN,
        std=transform.std if transform else STD,
        train=splits["train"],
        validation=splits["validation"],
        test=splits["test"],
        flip=False,
        pad=max(1, min(height, width) // 8),
        transform=transform,
        notes=(*origin, *_notes(founds, known)),
    )


def asked_transform(
    folder: Path, size: int | None, crop: int | None, interpolation: Interpolation | None, transform: Transform | None
) -> Transform | None:
    """``transform`` with what the options ask. Raises UsageError for a ``size`` or ``crop`` that leaves nothing."""
    for option, value in (("size", size), ("crop", crop)):
        if value is not None and value < 1:
            raise UsageError(f"data.{option} {value} leaves no image of {folder}: give a number of pixels, such as 224")
    if size is not None:
        transform = replace(transform, size=size, resize=size) if transform else Transform(size, size)
    if transform is None:
        if crop is not None or interpolation is not None:
            option = "crop" if crop is not None else "interpolation"
            raise UsageError(f"data.{option} has no effect on images that come as they are: give --size (data.size) too")
        return None
    if crop is not None:
        if crop > transform.resize:
            raise UsageError(f"data.crop {crop} is more than the shorter side of {transform.resize} pixels: give a smaller one, or --size")
        transform = replace(transform, size=crop)
    return replace(transform, interpolation=interpolation) if interpolation else transform


def class_names(file: str) -> tuple[str, ...]:
    """The lines of a file of class names that are not empty. Raises EngineError where it cannot be read, is empty, or has a name twice."""
    names = tuple(filter(None, _lines(file)))
    twice = next((name for name, count in Counter(names).items() if count > 1), None)
    if twice is not None or not names:
        fault = f"has {one_line(repr(twice), 80)} twice" if names else "has no names"
        raise EngineError(f"class list {file} {fault}: give each class once, one a line, in the order of the model's outputs")
    return names


def class_lines(file: str) -> tuple[str, ...]:
    """The lines of a file of class names for labels that count its lines: an empty one between names would move each class after it.

    Raises EngineError for such a line, and where the file cannot be read."""
    names = _lines(file)
    if "" in names:
        raise EngineError(f"class list {file}, line {names.index('') + 1} is empty: name that class, or take the line out")
    return names


def _lines(file: str) -> tuple[str, ...]:
    try:
        text = read_bytes(Path(file).expanduser(), MB).decode("utf-8-sig").rstrip()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise EngineError(f"class list {file} cannot be read ({reason}): give a text file with one name a line") from error
    return tuple(line.strip() for line in text.splitlines())


def _check_names(found: Found, known: tuple[str, ...], file: str | None, place: Path) -> None:
    for name, paths in found.listing.items():
        if paths and name not in known:
            if file is not None:
                raise EngineError(f"class list {file} has no class {name!r} but {place} has: add it, or rename the folder")
            raise EngineError(
                f"the training images have no class {name!r} but {place} has: give both the same class folders, or name all classes "
                "with --classes FILE"
            )


def _notes(founds: dict[str, Found], known: tuple[str, ...]) -> list[str]:
    notes = []
    for name, found in founds.items():
        empty = [c for c in known if not found.listing.get(c)]
        if empty:
            some = ", ".join(empty[:3]) + (" …" if len(empty) > 3 else "")
            notes.append(f"{name}: no images of {len(empty)} of {len(known)} classes ({some})")
        if bare := [c for c, paths in found.listing.items() if not paths and c not in known]:
            notes.append(f"{name}: {len(bare)} folders without images passed over ({', '.join(bare[:3])}{' …' if len(bare) > 3 else ''})")
        if found.below:
            notes.append(f"{name}: {found.below:,} images in folders below a class's belong to that class")
        if found.others:
            kinds = ", ".join(kind or "without a suffix" for kind, _ in found.others.most_common(3))
            notes.append(f"{name}: {found.others.total():,} files that are no images passed over ({kinds})")
    paths = [path for found in founds.values() for images in found.listing.values() for path in images]
    looked_at = paths[:: max(1, len(paths) // _LOOKED_AT)]
    if count := turned(looked_at):
        notes.append(f"{count:,} of {len(looked_at):,} images looked at ask by EXIF to be turned: they are not, as in torchvision")
    return notes


def _divide(
    listing: Listing, given: dict[str, Listing], frame: tuple[int, int], transform: Transform | None
) -> tuple[dict[str, Split], list[str]]:
    """The three splits, and a note for each that has no folder of its own."""
    whole = _file_split(listing, frame, transform)
    labels: Indices = whole.labels.numpy()
    rest = permutation(len(labels), SPLIT_SEED)
    total = len(rest)
    splits: dict[str, Split] = {}
    notes = []
    for name, listed in given.items():
        own = _file_split(listed, frame, transform)
        splits[name] = Subset(own, torch.from_numpy(permutation(len(own), SPLIT_SEED)))
    if "validation" in given and "test" not in given and len(splits["validation"]) > 1:
        # Training images would flatter a model that was trained on them.
        own = _file_split(given["validation"], frame, transform)
        held = permutation(len(own), SPLIT_SEED)
        test, validation = take(held, own.labels.numpy(), share(len(own), 0.5), SPLIT_SEED)
        splits |= {"test": Subset(own, torch.from_numpy(test)), "validation": Subset(own, torch.from_numpy(validation))}
        notes.append("there is no test folder: half of the validation images are for test")
    for name, fraction in (("test", TEST_SHARE), ("validation", VALIDATION_SHARE)):
        if name not in splits:
            drawn, rest = take(rest, labels, min(len(rest), share(total, fraction)), SPLIT_SEED)
            splits[name] = Subset(whole, torch.from_numpy(drawn))
            seen = "the accuracy of a model that was trained on them says nothing of new ones" if name == "test" else "a tenth of them"
            notes.append(f"there is no {name} folder: the {name} images are taken from the training images ({seen})")
    return {"train": Subset(whole, torch.from_numpy(rest)), **splits}, notes


def _file_split(listing: Listing, frame: tuple[int, int], transform: Transform | None) -> FileSplit:
    labels = np.repeat(np.arange(len(listing), dtype=np.int64), [len(paths) for paths in listing.values()])
    return FileSplit(tuple(path for paths in listing.values() for path in paths), torch.from_numpy(labels), frame, transform)


def _subfolders(folder: Path) -> list[Path]:
    """Subfolders by name."""
    return sorted((entry for entry in _visible(folder) if entry.is_dir()), key=lambda entry: entry.name)


def _child(folder: Path, names: tuple[str, ...]) -> Path | None:
    """The subfolder of the first of ``names`` that there is, in upper or lower case."""
    by_name = {place.name.lower(): place for place in reversed(_subfolders(folder))}
    return next((by_name[name] for name in names if name in by_name), None)


def _find(top: Path) -> Found:
    """Class name -> paths of its images, both sorted."""
    others: Counter[str] = Counter()
    listing: Listing = {}
    below = 0
    for place in _subfolders(top):
        own, deeper = _list_images(place, others)
        listing[place.name] = sorted(own + deeper)
        below += len(deeper)
    return Found(listing, others, below)


def list_images(folder: Path) -> list[str]:
    """The paths of the images in ``folder`` and in the folders below it, in order."""
    own, deeper = _list_images(folder, Counter())
    return sorted(own + deeper)


def _list_images(folder: Path, others: Counter[str]) -> tuple[list[str], list[str]]:
    """The images of a folder, and those of the folders below it; what is neither is counted by its suffix."""
    own: list[str] = []
    deeper: list[str] = []
    for entry in _visible(folder):
        if entry.is_dir():
            # A link could lead back to a folder above.
            if not entry.is_symlink():
                inner, below = _list_images(entry, others)
                deeper += inner + below
        elif entry.suffix.lower() in SUFFIXES:
            own.append(str(entry))
        else:
            others[entry.suffix.lower()] += 1
    return own, deeper


def _visible(folder: Path) -> list[Path]:
    """What is in ``folder``; a hidden entry, and a folder of a tool, is never a class or an image."""
    try:
        return [folder / entry for entry in os.listdir(folder) if not entry.startswith(".") and entry.lower() not in _OF_TOOLS]
    except OSError as error:
        raise EngineError(f"folder {folder} cannot be listed ({error.strerror}): check its permissions") from error
