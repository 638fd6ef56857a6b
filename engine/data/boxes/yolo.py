"""Labels of YOLO: for each image a text file with a class and a box in parts of the image on every line
(https://docs.ultralytics.com/datasets/detect/)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from engine.data.boxes.files import PARTS, Annotated, Box, Object, Passed, Row, row
from engine.data.images.image_files import SUFFIXES
from engine.data.images.imagefolder import class_lines
from engine.data.items import SplitName
from engine.data.splits import NAMES
from engine.errors import EngineError
from engine.plain_text import one_line
from engine.reading import MB, read_bytes

_LISTS = ("data.yaml", "data.yml", "dataset.yaml", "dataset.yml")
_NAMES = ("classes.txt", "obj.names", "labels/classes.txt")
# Parts of an image that are further out are pixels, or another format.
_FURTHEST = 1.5
_MOST_CLASSES = 100_000
Folders = tuple[Path, Path]


def find(place: Path) -> dict[SplitName, Folders] | None:
    """The folders of images and of labels of the splits at ``place``; None where there are none."""
    if not place.is_dir():
        return None
    found: dict[SplitName, Folders] = {}
    for split, names in NAMES.items():
        for name in names:
            for images, labels in ((place / "images" / name, place / "labels" / name), (place / name / "images", place / name / "labels")):
                if images.is_dir() and labels.is_dir():
                    found.setdefault(split, (images, labels))
    for split, both in _of_years(place).items():
        found.setdefault(split, both)
    if found:
        return found
    whole = place / "images", place / "labels"
    return {"train": whole} if all(folder.is_dir() for folder in whole) and next(_texts(whole[1]), None) else None


def _of_years(place: Path) -> dict[SplitName, Folders]:
    """The splits of folders such as ``images/train2017``. Raises EngineError for two of one split."""
    found: dict[SplitName, Folders] = {}
    if not (place / "images").is_dir():
        return found
    for images in sorted(path for path in (place / "images").iterdir() if path.is_dir()):
        name = images.name.lower().rstrip("0123456789")
        split = next((split for split, names in NAMES.items() if name in names and name != images.name), None)
        labels = place / "labels" / images.name
        if split is not None and labels.is_dir() and (other := found.setdefault(split, (images, labels)))[0] != images:
            raise EngineError(f"{images.parent} has two folders for {split}, {other[0].name} and {images.name}: keep one")
    return found


def read(place: Path, folders: Mapping[SplitName, Folders], classes: Sequence[str] | None = None) -> Annotated:
    """The rows of each split. ``classes`` are the names, where they do not lie with the data. Raises EngineError with the file and the
    line for what cannot be read."""
    passed = Passed()
    named, points = _described(place)
    names = tuple(classes) if classes is not None else named
    rows = {split: list(_rows(*both, names, points, passed)) for split, both in folders.items()}
    highest = max((label for some in rows.values() for one in some for label in one.labels), default=-1)
    if highest < 0:
        first = next(iter(folders.values()))[1]
        raise EngineError(f"{first} has no boxes: it annotates nothing")
    notes = [] if names else [f"no data.yaml names the classes: they are 0 to {highest}, by the highest in the labels"]
    return Annotated("YOLO labels", rows, names or tuple(map(str, range(highest + 1))), (*notes, *passed.notes()))


def _rows(images: Path, labels: Path, names: Sequence[str], points: int, passed: Passed) -> Iterator[Row]:
    # Two images of one name, a.jpg and a.png, have one label file.
    files = [(_key(path, images), path) for path in _files(images)]
    keys = {key for key, _ in files}
    if not files:
        raise EngineError(f"{images} has no images ({', '.join(SUFFIXES)}): add some, or give other data")
    texts = {_key(path, labels): path for path in _texts(labels) if path.name not in ("classes.txt",)}
    for key, text in texts.items():
        if key not in keys:
            passed.add("label files without an image passed over", str(text.name))
    for key, path in files:
        if key not in texts:
            passed.add("images without a label file: nothing is to be found there", path.name)
            yield Row(str(path), parts=True)
            continue
        objects = [Object(box, label, f"{texts[key].name}:{line}") for line, label, box in _lines(texts[key], names, points)]
        if not objects:
            passed.add("images with an empty label file: nothing is to be found there", path.name)
        yield row(str(path), objects, None, PARTS, passed)


def _lines(file: Path, names: Sequence[str], points: int) -> Iterator[tuple[int, int, Box]]:
    try:
        text = read_bytes(file, 16 * MB).decode("utf-8-sig")
    except OSError as error:
        raise EngineError(f"{file} cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise EngineError(f"{file} is not UTF-8 text: save it as UTF-8") from error
    for number, line in enumerate(text.splitlines(), 1):
        words = line.split()
        if words:
            yield number, *_parsed(words, f"{file}:{number}", names, points)


def _parsed(words: Sequence[str], where: str, names: Sequence[str], points: int) -> tuple[int, Box]:
    try:
        values = [float(word) for word in words]
    except ValueError:
        raise EngineError(f"{where}: {one_line(' '.join(words), 60)} are no numbers: give class, cx, cy, width and height") from None
    if not all(math.isfinite(value) for value in values):
        raise EngineError(f"{where}: it holds NaN or infinity")
    label, places = values[0], values[1:]
    if label != int(label) or not 0 <= label < (len(names) or _MOST_CLASSES):
        known = f"0 to {len(names) - 1}" if names else "whole numbers from 0"
        raise EngineError(f"{where}: there is no class {words[0][:20]}, classes are {known}")
    if points and len(places) == 4 + points:
        # Key points follow the box.
        places = places[:4]
    outline = len(places) >= 6 and len(places) % 2 == 0
    if len(places) != 4 and not outline:
        raise EngineError(f"{where}: it has {len(values)} numbers: give class, cx, cy, width and height")
    if max(map(abs, places)) > _FURTHEST:
        raise EngineError(f"{where}: {max(places, key=abs):g} is outside of the image: boxes are in parts of it, 0 to 1")
    if outline:
        # An outline of the object: its box is around it.
        return int(label), (min(places[::2]), min(places[1::2]), max(places[::2]), max(places[1::2]))
    cx, cy, width, height = places
    return int(label), (cx - width / 2, cy - height / 2, cx + width / 2, cy + height / 2)


def _described(place: Path) -> tuple[tuple[str, ...], int]:
    """The names of the classes from data.yaml or a list of names, empty where there is none, and how many numbers of key points follow
    each box."""
    for name in _LISTS:
        if (place / name).is_file():
            return _from_yaml(place / name)
    for name in _NAMES:
        if (place / name).is_file():
            return tuple(one_line(line, 80) for line in class_lines(str(place / name))), 0
    return (), 0


def _from_yaml(file: Path) -> tuple[tuple[str, ...], int]:
    try:
        content: Any = yaml.safe_load(read_bytes(file, MB).decode("utf-8"))
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        raise EngineError(f"{file} cannot be read as YAML ({type(error).__name__}): give names, a list of classes") from error
    if not isinstance(content, dict):
        return (), 0
    names, shape = content.get("names"), content.get("kpt_shape")
    if shape is not None and not (isinstance(shape, list) and len(shape) == 2 and all(isinstance(n, int) and 0 < n < 1000 for n in shape)):
        raise EngineError(f"{file}: kpt_shape is no list of two numbers, of key points and of what each has")
    points = shape[0] * shape[1] if shape else 0
    if isinstance(names, dict):
        if sorted(names, key=str) != sorted(range(len(names)), key=str):
            raise EngineError(f"{file}: names are not numbered 0 to {len(names) - 1}")
        names = [names[number] for number in range(len(names))]
    if names is None:
        return (), points
    if not isinstance(names, list) or not names or not all(isinstance(name, str | int | float) for name in names):
        raise EngineError(f"{file}: names is no list of class names")
    count = content.get("nc")
    if isinstance(count, int) and count != len(names):
        raise EngineError(f"{file}: it names {len(names)} classes and says that there are {count} (nc)")
    return tuple(one_line(str(name), 80) for name in names), points


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in _below(folder) if path.suffix.lower() in SUFFIXES)


def _texts(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(_below(folder)) if path.suffix.lower() == ".txt")


def _below(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))


def _key(path: Path, folder: Path) -> str:
    return str(path.relative_to(folder).with_suffix(""))
