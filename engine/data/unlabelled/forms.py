"""Where inputs without labels come from, and the ways in which they may be meant."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch.utils._pytree import tree_map

from engine.data import registry
from engine.data.images.base import Data
from engine.data.images.image_files import SUFFIXES as IMAGES
from engine.data.items import SPLIT_NAMES, ItemData, Items, ItemSplit, MemoryItems, SplitName
from engine.data.names import is_random
from engine.data.unlabelled import arrays, audio, images, random_inputs
from engine.data.unlabelled.splits import TEST, TRAINING, VALIDATION, data_of_parts
from engine.errors import EngineError, UsageError, nearest
from engine.models.transform import MEAN, STD, Transform
from engine.plain_text import one_line
from engine.recipe.recipe import DataPart

_UNUSED = "its labels are not used"
_OF_TOOLS = ("__macosx", "@eadir", "$recycle.bin")
_KINDS: dict[str, tuple[str, ...]] = {"images": IMAGES, "arrays": arrays.SUFFIXES, "audio": audio.SUFFIXES}


@dataclass(frozen=True)
class Found:
    """The files of one kind below a folder, by split where it has folders for them; ``others`` are passed over."""

    kind: str
    splits: dict[SplitName, tuple[Path, ...]]
    others: Counter[str]

    @property
    def paths(self) -> tuple[Path, ...]:
        return tuple(path for paths in self.splits.values() for path in paths)

    @property
    def notes(self) -> list[str]:
        if not self.others:
            return []
        kinds = ", ".join(kind or "without a suffix" for kind, _ in self.others.most_common(3))
        return [f"{self.others.total():,} other files passed over ({kinds})"]


def forms(part: DataPart, transform: Transform | None = None) -> tuple[ItemData, ...]:
    """The inputs that a recipe's ``data`` names, in each way that they may be meant: the first that a model takes is the right one.

    ``transform`` is what the model expects of photographs. Raises UsageError for a name that is not known or options that have no
    effect, EngineError for files that are missing or cannot be read."""
    if part.calibration_from is not None:
        raise UsageError("data.calibration_from is for data with labels: --data takes the folder of inputs without them itself")
    if is_random(part.name):
        _no_options(part, "random inputs")
        return (random_inputs.load(part.name),)
    if part.name in registry.ENTRIES:
        return (_named(part, transform),)
    place = Path(part.name).expanduser()
    if not place.exists():
        if os.sep in part.name or part.name.startswith((".", "~")):
            raise EngineError(f"data {part.name} does not exist: check the path given to --data")
        raise UsageError(f"unknown data {part.name!r}, and no file or folder of that name: {nearest(part.name, list(registry.ENTRIES))}")
    found = _found(place)
    if found.kind == "images":
        return tuple(_images(place, found, part, transform))
    return tuple(_arrays(place, found, part) if found.kind == "arrays" else _audio(place, found, part))


def _named(part: DataPart, transform: Transform | None) -> ItemData:
    """A data set with labels, without them."""
    entry = registry.ENTRIES[part.name]
    if entry.task != "classification":
        whole: ItemData = import_module(entry.module).load(part)
        kept = [_Unlabelled(whole.split(split)) for split in SPLIT_NAMES]
        return replace(whole, train=kept[0], validation=kept[1], test=kept[2], notes=(*whole.notes, _UNUSED))
    data = registry.load(part.name, transform=transform, **part.of_images())
    train, validation, test = (_Images(data, split) for split in SPLIT_NAMES)
    about = {"mean": list(data.mean), "std": list(data.std)}
    return ItemData(data.name, train, validation, test, len(data.classes), about=about, notes=(*data.notes, _UNUSED))


@dataclass(frozen=True, eq=False)
class _Unlabelled:
    whole: ItemSplit

    def __len__(self) -> int:
        return len(self.whole)

    def read(self, places: Sequence[int]) -> Items:
        return Items(self.whole.read(places).inputs, [None] * len(places))


@dataclass(frozen=True, eq=False)
class _Images:
    """A split of classified images, normalized, without the classes."""

    data: Data
    split: SplitName

    def __len__(self) -> int:
        return len(self.data.split(self.split))

    def read(self, places: Sequence[int]) -> Items:
        pixels, _ = self.data.split(self.split).read(torch.tensor(places, dtype=torch.long))
        mean, std = (torch.tensor(values)[:, None, None] for values in (self.data.mean, self.data.std))
        return Items(pixels.float().div_(255).sub_(mean).div_(std), [None] * len(places))


def _images(place: Path, found: Found, part: DataPart, transform: Transform | None) -> Iterator[ItemData]:
    _refuse(part, ("classes", "rate"), "images without labels")
    shape = _transform(part, transform)
    known = shape or transform
    mean, std = part.mean or (known.mean if known else MEAN), part.std or (known.std if known else STD)
    if shape is None:
        shape = transform
    for grey in (False, True):
        look = images.Look(shape, mean, std, grey)
        split = {name: images.ImageItems(paths, look) for name, paths in found.splits.items()}
        said = [str(look), *found.notes, *images.notes(found.paths)]
        if shape is None and len(sizes := {split["train"].kind(i) for i in range(len(split["train"]))}) > 1:
            said.append(f"images of {len(sizes)} sizes, each batch of one; exported files take one size alone: --size gives all the same")
        about: dict[str, Any] = {"mean": list(mean), "std": list(std), **({"transform": str(shape)} if shape else {})}
        yield data_of_parts(_name(place), split, notes=said, about=about)


def _transform(part: DataPart, transform: Transform | None) -> Transform | None:
    if part.size is None:
        if part.crop is not None or part.interpolation is not None:
            option = "crop" if part.crop is not None else "interpolation"
            raise UsageError(f"data.{option} has no effect on images that come as they are: give --size (data.size) too")
        return transform
    side = part.crop or part.size
    if side > part.size:
        raise UsageError(f"data.crop {side} is more than the shorter side of {part.size} pixels: give a smaller one, or --size")
    base = transform or Transform(side, part.size)
    changed = replace(base, size=side, resize=part.size)
    return replace(changed, interpolation=part.interpolation) if part.interpolation else changed


def _arrays(place: Path, found: Found, part: DataPart) -> Iterator[ItemData]:
    """Files of many items whose arrays are inputs by name or by place; or each file an item of its own."""
    _refuse(part, ("classes", "rate", "size", "crop", "interpolation"), "arrays")
    normalized = part.mean is not None or part.std is not None
    held = {split: [(path, arrays.read(path)) for path in paths] for split, paths in found.splits.items()}
    first = next(iter(held["train"]))[1]
    for parts in held.values():
        for path, one in parts:
            if one.keys() != first.keys():
                raise EngineError(f"{path} holds the arrays {_listed(one)}, and the first file {_listed(first)}: give files that are alike")
    said = [*found.notes, *arrays.said_of(found.paths, normalized)]
    named = len(first) > 1 and not all(name.isdigit() for name in first)
    made: list[ItemData] = []
    fault: EngineError | None = None
    for by_name in (True, False) if named else (False,):
        try:
            splits = {split: arrays.ManyArrays.of([_items(x, path, by_name, part) for path, x in parts]) for split, parts in held.items()}
        except EngineError as error:
            fault = error
            break
        order = f"inputs {_listed(first)}, by {'name' if by_name else 'place'}" if len(first) > 1 else ""
        made.append(data_of_parts(_name(place), splits, notes=filter(None, (order, *said))))
    if len(found.paths) > 1 or fault is not None:
        for by_name in (True, False) if named else (False,):
            singles = {
                split: arrays.ManyArrays.of([_items(_alone(one), path, by_name, part) for path, one in parts])
                for split, parts in held.items()
            }
            made.append(data_of_parts(_name(place), singles, notes=("each file is one input", *said)))
    if fault is not None and len(found.paths) == 1:
        raise fault
    yield from made


def _alone(found: arrays.Named) -> arrays.Named:
    """The arrays of one item as those of a file that holds this one."""
    return {name: x[None] for name, x in found.items()}


def _items(found: arrays.Named, path: Path, by_name: bool, part: DataPart) -> MemoryItems:
    count = arrays.counted(found, path)
    inputs = dict(found) if by_name else arrays.in_order(found)
    if part.mean is not None or part.std is not None:
        inputs = tree_map(lambda x: _normalized(x, part, path), inputs)
    return MemoryItems(Items(inputs, [None] * count))


def _normalized(x: torch.Tensor, part: DataPart, path: Path) -> torch.Tensor:
    if x.dim() != 4 or x.shape[1] != 3:
        raise EngineError(f"{path} holds {tuple(x.shape)}, and data.mean and data.std are for images (N, 3, H, W): leave them out")
    mean, std = torch.tensor(part.mean or MEAN), torch.tensor(part.std or STD)
    scale = 255 if float(x.max()) > 1.0 else 1
    return (x / scale - mean[:, None, None]) / std[:, None, None]


def _audio(place: Path, found: Found, part: DataPart) -> Iterator[ItemData]:
    _refuse(part, ("classes", "mean", "std", "crop", "interpolation"), "audio")
    known = audio.rates(found.paths)
    if part.rate is None and len(known) > 1:
        (a, first), (b, second) = list(known.items())[:2]
        raise EngineError(f"{first} has {a:,} samples a second and {second} {b:,}: give --rate (data.rate), to which all are resampled")
    rate = part.rate or next(iter(known))
    told = [f"{rate:,} samples a second{', resampled' if set(known) != {rate} else ''}"]
    if part.size is not None:
        told.append(f"the first {part.size:,} samples of each, shorter ones filled with silence")
    words = {"channels": "inputs (channels, samples)", "mono": "the mean of the channels, (1, samples)", "flat": "inputs (samples)"}
    for form, said in words.items():
        take = audio.Take(part.rate, part.size, form)
        split = {name: audio.AudioItems(paths, take) for name, paths in found.splits.items()}
        yield data_of_parts(_name(place), split, notes=(*told, said, *found.notes), about={"rate": rate})


def _found(place: Path) -> Found:
    """The files of the kind that most of a folder's files are of. Raises EngineError where it holds none."""
    if place.is_file():
        kind = _kind(place)
        if kind is None:
            raise EngineError(f"data {place} is no file of inputs: give {', '.join(arrays.SUFFIXES)}, an image, a .wav file, or a folder")
        return Found(kind, {"train": (place,)}, Counter())
    top = {entry.name.lower(): entry for entry in _entries(place) if entry.is_dir()}
    folders: dict[SplitName, Path] = {}
    for split, names in (("train", TRAINING), ("validation", VALIDATION), ("test", TEST)):
        if chosen := next((top[name] for name in names if name in top), None):
            folders[split] = chosen  # type: ignore[index]
    if "train" not in folders or len(folders) == 1:
        folders = {"train": place}
    files = {split: tuple(_files(folder)) for split, folder in folders.items()}
    counts = Counter(kind for paths in files.values() for path in paths if (kind := _kind(path)))
    if not counts:
        suffixes = ", ".join(suffix for kind in _KINDS.values() for suffix in kind)
        raise EngineError(f"data {place} holds no inputs: put files into it ({suffixes})")
    kind = counts.most_common(1)[0][0]
    splits = {split: tuple(path for path in paths if _kind(path) == kind) for split, paths in files.items()}
    if empty := next((split for split, paths in splits.items() if not paths), None):
        raise EngineError(f"{folders[empty]} holds no {kind}, and the folders beside it do: put {kind} into it, or take it away")
    others = Counter(path.suffix.lower() for paths in files.values() for path in paths if _kind(path) != kind)
    return Found(kind, splits, others)


def _files(folder: Path) -> Iterator[Path]:
    for entry in _entries(folder):
        if entry.is_dir():
            # A link could lead back to a folder above.
            if not entry.is_symlink():
                yield from _files(entry)
        elif entry.is_file():
            yield entry


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(entry for entry in folder.iterdir() if not entry.name.startswith(".") and entry.name.lower() not in _OF_TOOLS)
    except OSError as error:
        raise EngineError(f"folder {folder} cannot be listed ({error.strerror}): check its permissions") from error


def _kind(path: Path) -> str | None:
    return next((kind for kind, suffixes in _KINDS.items() if path.suffix.lower() in suffixes), None)


def _name(place: Path) -> str:
    return place.resolve().name


def _listed(found: arrays.Named) -> str:
    return ", ".join(one_line(name, 40) for name in found)


def _refuse(part: DataPart, options: Sequence[str], what: str) -> None:
    given = next((option for option in options if getattr(part, option) is not None), None)
    if given:
        raise UsageError(f"data.{given} has no effect on {what}: leave it out")


def _no_options(part: DataPart, what: str) -> None:
    _refuse(part, ("mean", "std", "size", "crop", "interpolation", "classes", "rate"), what)
