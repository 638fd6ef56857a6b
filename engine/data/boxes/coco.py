"""Annotations of COCO: one JSON file a split, with images, categories, and a box for each object (https://cocodataset.org/#format-data)."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engine.data.boxes.files import Annotated, Box, Object, Passed, Row, in_pixels, row, under
from engine.data.images.image_files import told_size
from engine.data.items import SplitName
from engine.data.splits import NAMES
from engine.errors import EngineError
from engine.plain_text import one_line
from engine.reading import MB, read_json

_LIMIT = 1000 * MB
# Roboflow's name for it, beside the images of a split.
_BESIDE = "_annotations.coco.json"
_FIRST: tuple[SplitName, ...] = ("train", "test", "validation")


def find(place: Path) -> dict[SplitName, Path] | None:
    """The annotation files of the splits at ``place``, a folder or one file; None where there are none."""
    if place.is_file():
        return {"train": place} if place.suffix.lower() == ".json" else None
    beside = {split: place / name / _BESIDE for split, names in NAMES.items() for name in names[::-1] if (place / name / _BESIDE).is_file()}
    if beside:
        return beside
    files = sorted(place.glob("annotations/*.json")) or sorted(place.glob("*.json"))
    files = [file for file in files if file.name.startswith("instances_")] or files
    by_split: dict[SplitName, Path] = {}
    for file in files:
        words = file.stem.lower().replace("-", "_").split("_")
        named = {split for split, names in NAMES.items() if any(word.rstrip("0123456789") in names for word in words)}
        # One file is for one split: "train_val" is for training, "test-dev" for test.
        split = next((split for split in _FIRST if split in named), None)
        if split is not None and (other := by_split.setdefault(split, file)) != file:
            raise EngineError(f"{file.parent} holds two JSON files for {split}, {other.name} and {file.name}: keep one, or give one file")
    if by_split:
        return by_split
    if len(files) < 2:
        return {"train": files[0]} if files else None
    some = ", ".join(file.name for file in files[:3])
    raise EngineError(
        f"{files[0].parent} holds {len(files)} JSON files ({some} …): name them by split (train, val, test), or give one file"
    )


def read(place: Path, files: Mapping[SplitName, Path]) -> Annotated:
    """The rows of each split. Raises EngineError with the file and the entry for what cannot be read as COCO's."""
    passed = Passed()
    top = place if place.is_dir() else place.parent.parent if place.parent.name == "annotations" else place.parent
    contents = {split: _content(file) for split, file in files.items()}
    names: dict[int, str] = {}
    for split, file in files.items():
        found = _categories(contents[split], file)
        if names and (more := {number: name for number, name in found.items() if names.get(number) != name}):
            number, name = next(iter(more.items()))
            raise EngineError(
                f"{file} has category {number} ({one_line(name, 60)}) and the training file has {one_line(str(names.get(number)), 60)}: "
                "give all splits the same categories"
            )
        names = names or found
    labels = {number: label for label, number in enumerate(sorted(names))}
    rows = {split: _rows(contents[split], file, top, labels, passed) for split, file in files.items()}
    crowds = sum(sum(one.crowds) for some in rows.values() for one in some)
    notes = [f"{crowds:,} crowds count neither for nor against a model"] if crowds else []
    return Annotated("COCO JSON", rows, tuple(names[number] for number in sorted(names)), (*notes, *passed.notes()))


def _content(file: Path) -> Mapping[str, Any]:
    try:
        content = read_json(file, _LIMIT)
    except OSError as error:
        raise EngineError(f"{file} cannot be read ({error.strerror}): give COCO annotations in JSON") from error
    except ValueError as error:
        reason = "it is not UTF-8 text" if isinstance(error, UnicodeDecodeError) else one_line(error, 80)
        raise EngineError(f"{file} is no JSON in UTF-8 ({reason}): give COCO annotations") from error
    if not isinstance(content, dict) or not all(isinstance(content.get(key), list) for key in ("images", "annotations", "categories")):
        raise EngineError(f"{file} has no lists of images, annotations and categories: give COCO annotations of objects")
    for key in ("images", "categories"):
        if not content[key]:
            raise EngineError(f"{file} has no {key}: it annotates nothing")
    for key in ("images", "annotations", "categories"):
        place = next((i for i, entry in enumerate(content[key]) if not isinstance(entry, dict)), None)
        if place is not None:
            raise EngineError(f"{file}, {key}[{place}]: it is no object of JSON")
    return content


def _categories(content: Mapping[str, Any], file: Path) -> dict[int, str]:
    found: dict[int, str] = {}
    for place, entry in enumerate(content["categories"]):
        number = _id(entry.get("id"), file, f"categories[{place}].id")
        if number in found:
            raise EngineError(f"{file}, categories[{place}]: the id {number} is there twice")
        found[number] = one_line(str(entry.get("name", number)), 80)
    return found


def _rows(content: Mapping[str, Any], file: Path, top: Path, labels: Mapping[int, int], passed: Passed) -> list[Row]:
    images: dict[int, Mapping[str, Any]] = {}
    places: dict[str, int] = {}
    for place, entry in enumerate(content["images"]):
        number = _id(entry.get("id"), file, f"images[{place}].id")
        if number in images:
            raise EngineError(f"{file}, images[{place}]: the id {number} is there twice")
        if not isinstance(entry.get("file_name"), str) or not entry["file_name"]:
            raise EngineError(f"{file}, images[{place}]: it has no file_name")
        if (first := places.setdefault(entry["file_name"], place)) != place:
            raise EngineError(f"{file}, images[{place}]: its file_name is that of images[{first}]: give one image one entry")
        images[number] = entry
    objects = _objects(content, file, images, labels, passed)
    if not any(objects.values()):
        raise EngineError(f"{file} has no boxes on its {len(images):,} images: it annotates nothing")
    in_pixels((one for some in objects.values() for one in some), file)
    finder = _Finder(file, top)
    rows = []
    for number, entry in images.items():
        path = finder.find(entry["file_name"])
        if path is None:
            passed.add("images that are listed are not there", f"{one_line(entry['file_name'], 80)} of {file.name}")
            continue
        size = _size(entry, file)
        width, height = size or told_size(str(path))
        rows.append(row(str(path), objects[number], size, (width, height), passed))
    if not rows:
        raise EngineError(f"none of the {len(images):,} images of {file} is there: put them into {top / 'images'}, or beside it")
    empty = sum(not one.boxes for one in rows)
    if empty:
        passed.add("images without a box: nothing is to be found there", next(one.path for one in rows if not one.boxes), empty)
    return rows


def _objects(
    content: Mapping[str, Any], file: Path, images: Mapping[int, Any], labels: Mapping[int, int], passed: Passed
) -> Mapping[int, list[Object]]:
    """By the image's id: box, class, crowd and place of each annotation."""
    found: dict[int, list[Object]] = defaultdict(list)
    seen: set[int] = set()
    for place, entry in enumerate(content["annotations"]):
        where = f"{file.name}, annotations[{place}]"
        image = _id(entry.get("image_id"), file, f"annotations[{place}].image_id")
        if image not in images:
            passed.add("annotations of no image passed over", where)
            continue
        number = entry.get("id")
        if number is not None:
            number = _id(number, file, f"annotations[{place}].id")
            if number in seen:
                raise EngineError(f"{file}, annotations[{place}]: the id {number} is there twice")
            seen.add(number)
        category = _id(entry.get("category_id"), file, f"annotations[{place}].category_id")
        if category not in labels:
            raise EngineError(f"{file}, annotations[{place}]: there is no category {category}")
        x, y, width, height = _box(entry.get("bbox"), file, place)
        crowd = entry.get("iscrowd") or 0
        if crowd not in (0, 1):
            raise EngineError(f"{file}, annotations[{place}]: its iscrowd is neither 0 nor 1")
        found[image].append(Object((x, y, x + width, y + height), labels[category], where, int(crowd)))
    return found


def _box(values: Any, file: Path, place: int) -> Box:
    numbers = isinstance(values, list) and len(values) == 4 and all(isinstance(v, int | float) and math.isfinite(v) for v in values)
    if not numbers:
        raise EngineError(f"{file}, annotations[{place}]: its bbox is no list of four finite numbers (x, y, width, height)")
    x, y, width, height = (float(value) for value in values)
    return x, y, width, height


def _id(value: Any, file: Path, where: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise EngineError(f"{file}, {where}: it is no whole number")
    return value


def _size(entry: Mapping[str, Any], file: Path) -> tuple[int, int] | None:
    size = entry.get("width"), entry.get("height")
    if size == (None, None):
        return None
    width, height = size
    if not isinstance(width, int) or not isinstance(height, int) or width < 1 or height < 1:
        raise EngineError(f"{file}, image {one_line(entry['file_name'], 60)}: its width and height are no whole numbers above 0")
    return width, height


class _Finder:
    """Where the images of one annotation file lie: beside it, in a folder that is named like its split, or in ``images``."""

    def __init__(self, file: Path, top: Path) -> None:
        split = file.stem.removeprefix("instances_").removeprefix("_annotations")
        folders = [file.parent, top / "images" / split, top / split, top / "images", top]
        for names in NAMES.values():
            folders += [top / "images" / name for name in names if name in split] + [top / name for name in names if name in split]
        self._folders = [folder for folder in dict.fromkeys(folders) if folder.is_dir()]
        self._top = top

    def find(self, name: str) -> Path | None:
        """None for a file that is not there, or that lies outside of the data set."""
        for folder in self._folders:
            path = folder / name
            try:
                if path.is_file() and under(self._top, path):
                    return path
            except (OSError, ValueError):
                return None
        return None
