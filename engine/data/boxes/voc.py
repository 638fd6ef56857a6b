"""Annotations of Pascal VOC: an XML file for each image (Everingham et al. 2010)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.parsers import expat

from engine.data.boxes.files import Annotated, Box, Object, Passed, Row, in_pixels, row, under
from engine.data.images.image_files import SUFFIXES, told_size
from engine.data.items import SplitName
from engine.data.splits import NAMES
from engine.errors import EngineError
from engine.plain_text import one_line
from engine.reading import MB, read_bytes

_LIMIT, _DEEPEST = 4 * MB, 20
_IMAGES = ("JPEGImages", "images", "Images", ".")
_LISTS = "ImageSets/Main"
_DIFFICULT = {"": 0, "0": 0, "1": 1, "false": 0, "true": 1, "no": 0, "yes": 1, "unspecified": 0}


@dataclass
class Element:
    """An element of XML with the text in it."""

    name: str
    text: str = ""
    inner: list[Element] = field(default_factory=list)

    def first(self, name: str) -> Element | None:
        return next((one for one in self.inner if one.name == name), None)

    def value(self, name: str) -> str:
        found = self.first(name)
        return found.text.strip() if found else ""


def find(place: Path) -> Path | None:
    """The folder of annotations, ``Annotations`` or XML files beside the images; None where there are none."""
    if not place.is_dir():
        return None
    below = (place, *sorted(place.glob("VOC20*"), reverse=True), *sorted(place.glob("VOCdevkit/VOC20*"), reverse=True))
    for top in below:
        for name in ("Annotations", "annotations", "."):
            if next((top / name).glob("*.xml"), None):
                return top / name
    return None


def read(folder: Path) -> Annotated:
    """The rows of each split. Raises EngineError with the file and the object for what cannot be read as VOC's."""
    top = folder.parent if folder.name.lower() == "annotations" else folder
    passed = Passed()
    found = [(path, parsed(path)) for path in sorted(folder.glob("*.xml"))]
    names = sorted({_name(one, i, path) for path, root in found for i, one in enumerate(_objects(root))})
    if not names:
        raise EngineError(f"{folder} has no objects in its {len(found):,} files: it annotates nothing")
    labels = {name: label for label, name in enumerate(names)}
    rows: dict[str, Row] = {}
    annotated: dict[Path, Path] = {}
    objects = {path: list(_objects_of(root, path, labels)) for path, root in found}
    in_pixels((one for some in objects.values() for one in some), folder)
    for path, root in found:
        image = _image(root, path, top)
        if image is None:
            passed.add("annotations without an image passed over", path.name)
            continue
        if (first := annotated.setdefault(image, path)) != path:
            raise EngineError(f"{path} annotates {image.name}, and {first.name} does too: correct the filename in one of them")
        rows[path.stem] = _row(root, path, image, objects[path], passed)
    if not rows:
        raise EngineError(f"none of the {len(found):,} files in {folder} has its image in {top / _IMAGES[0]}: put the images there")
    _without_annotation(rows, top, passed)
    splits = _splits(rows, top, passed)
    difficult = sum(sum(one.crowds) for one in rows.values())
    notes = ["pixels are counted from 1, as in VOC"]
    notes += [f"{difficult:,} objects marked difficult count neither for nor against a model"] if difficult else []
    return Annotated("VOC XML", splits, tuple(names), (*notes, *passed.notes()))


def parsed(path: Path) -> Element:
    """The root of an XML file. Entities, and what declares them, are refused: they can grow without bounds, or name other files.

    Raises EngineError with the file and the line."""
    parser = expat.ParserCreate()
    root = Element("")
    open_elements = [root]

    def refuse(*_: object) -> Any:
        raise EngineError(f"{path} declares a document type: annotations need none, take it out")

    def start(name: str, _: dict[str, str]) -> None:
        if len(open_elements) > _DEEPEST:
            raise EngineError(f"{path} is nested deeper than {_DEEPEST} levels: it is no annotation of VOC")
        open_elements.append(Element(name))
        open_elements[-2].inner.append(open_elements[-1])

    def end(_: str) -> None:
        open_elements.pop()

    def text(more: str) -> None:
        open_elements[-1].text += more

    parser.StartDoctypeDeclHandler = refuse
    parser.EntityDeclHandler = refuse
    parser.ExternalEntityRefHandler = refuse
    parser.StartElementHandler, parser.EndElementHandler, parser.CharacterDataHandler = start, end, text
    parser.buffer_text = True
    try:
        parser.Parse(read_bytes(path, _LIMIT), True)
    except OSError as error:
        raise EngineError(f"{path} cannot be read ({error.strerror})") from error
    except (expat.ExpatError, LookupError, ValueError) as error:
        line = getattr(error, "lineno", 1)
        raise EngineError(f"{path}:{line}: it is no XML ({one_line(str(error).partition(':')[0], 60)})") from error
    return root.inner[0] if root.inner else root


def _objects(root: Element) -> Iterator[Element]:
    return (one for one in root.inner if one.name == "object")


def _name(one: Element, place: int, path: Path) -> str:
    name = one_line(one.value("name"), 80)
    if not name:
        raise EngineError(f"{path}, object {place + 1}: it has no name")
    return name


def _image(root: Element, path: Path, top: Path) -> Path | None:
    told = Path(root.value("filename").replace("\\", "/")).name
    own = [path.stem + suffix for suffix in SUFFIXES] + [path.stem + suffix.upper() for suffix in SUFFIXES]
    named, of_stem = _first(top, [told]), _first(top, own)
    if named is not None and of_stem is not None and named.stem != path.stem:
        raise EngineError(f"{path} has the filename {one_line(told, 60)}, and there is {of_stem.name} too: correct it, or rename the file")
    return named or of_stem


def _first(top: Path, names: Sequence[str]) -> Path | None:
    """The first image of one of ``names``."""
    found = (top / folder / name for folder in _IMAGES for name in names)
    return next((path for path in found if path.suffix.lower() in SUFFIXES and path.is_file() and under(top, path)), None)


def _objects_of(root: Element, path: Path, labels: dict[str, int]) -> Iterator[Object]:
    for place, one in enumerate(_objects(root)):
        where = f"{path.name}, object {place + 1}"
        difficult = _DIFFICULT.get(one.value("difficult").lower())
        if difficult is None:
            raise EngineError(f"{path}, object {place + 1}: its difficult is neither 0 nor 1")
        yield Object(_box(one, f"{path}, object {place + 1}"), labels[_name(one, place, path)], where, difficult)


def _row(root: Element, path: Path, image: Path, objects: Sequence[Object], passed: Passed) -> Row:
    size = _size(root, path)
    width, height = size or told_size(str(image))
    if not objects:
        passed.add("images without a box: nothing is to be found there", path.name)
    return row(str(image), objects, size, (width, height), passed)


def _box(one: Element, where: str) -> Box:
    inner = one.first("bndbox")
    try:
        values = [float(inner.value(name)) for name in ("xmin", "ymin", "xmax", "ymax")] if inner else []
    except ValueError:
        values = []
    if len(values) != 4 or not all(math.isfinite(value) for value in values):
        raise EngineError(f"{where}: its bndbox has no four finite numbers xmin, ymin, xmax and ymax")
    x1, y1, x2, y2 = values
    # The first pixel is 1, and the last belongs to the box.
    return x1 - 1, y1 - 1, x2, y2


def _size(root: Element, path: Path) -> tuple[int, int] | None:
    inner = root.first("size")
    if inner is None or not inner.value("width"):
        return None
    try:
        width, height = int(inner.value("width")), int(inner.value("height"))
    except ValueError:
        raise EngineError(f"{path}: its size has no whole numbers width and height") from None
    # Some tools write 0 where they do not know.
    return (width, height) if width > 0 and height > 0 else None


def _without_annotation(rows: dict[str, Row], top: Path, passed: Passed) -> None:
    known = {one.path for one in rows.values()}
    folder = next((top / name for name in _IMAGES[:3] if (top / name).is_dir()), top)
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in SUFFIXES and str(path) not in known:
            passed.add("images without an annotation passed over", path.name)


def _splits(rows: dict[str, Row], top: Path, passed: Passed) -> dict[SplitName, list[Row]]:
    """By the lists of ``ImageSets/Main``; all for training where there are none."""
    splits: dict[SplitName, list[Row]] = {}
    for split, names in NAMES.items():
        for name in names:
            file = top / _LISTS / f"{name}.txt"
            if split not in splits and file.is_file():
                splits[split] = list(_listed(file, rows, passed))
    splits = {split: some for split, some in splits.items() if some}
    return splits if "train" in splits else {"train": list(rows.values())}


def _listed(file: Path, rows: dict[str, Row], passed: Passed) -> Iterator[Row]:
    try:
        lines = read_bytes(file, 16 * MB).decode("utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        raise EngineError(f"{file} cannot be read as UTF-8 text: give one image a line") from error
    for number, line in enumerate(lines, 1):
        name = line.split()[0] if line.split() else ""
        if name and name not in rows:
            passed.add(f"images of {file.name} without an annotation passed over", f"{file.name}:{number}")
        elif name:
            yield rows[name]
