"""Small pictures of the items whose answer changed most, beside a run's report: what one form and the other made of them. Torch-free."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engine.reading import MB, read_json

NAME = "changed.json"
SIDE, MOST = 48, 20
_BOXES = 50
_LARGEST = 2 * MB


@dataclass(frozen=True)
class Box:
    """A box in pixels of the picture, and its class."""

    left: int
    top: int
    right: int
    bottom: int
    kind: int = 0


@dataclass(frozen=True)
class Look:
    """What a form answered, drawn: ``mask`` holds the class of each pixel, row by row, and is empty without one."""

    mask: bytes = b""
    boxes: tuple[Box, ...] = ()


@dataclass(frozen=True)
class Picture:
    """The item at ``place`` of the test split: ``rgb`` holds three bytes a pixel, row by row; ``looks`` are by form, ``fp32`` and
    ``quantized``."""

    place: int
    width: int
    height: int
    rgb: bytes
    looks: Mapping[str, Look] = field(default_factory=dict)


def to_json(pictures: Iterable[Picture]) -> str:
    """The file's content."""
    return json.dumps({"pictures": [_written(picture) for picture in pictures]}) + "\n"


def read(directory: Path) -> tuple[Picture, ...]:
    """The pictures of a run's folder; what is missing, damaged or too large is passed over."""
    try:
        content = read_json(directory / NAME, _LARGEST)
    except (OSError, ValueError):
        return ()
    rows = content.get("pictures") if isinstance(content, Mapping) else None
    found = (_read(row) for row in rows[:MOST]) if isinstance(rows, list) else ()
    return tuple(picture for picture in found if picture is not None)


def _written(picture: Picture) -> dict[str, Any]:
    looks = {
        form: {"mask": _text(look.mask), "boxes": [[b.left, b.top, b.right, b.bottom, b.kind] for b in look.boxes[:_BOXES]]}
        for form, look in picture.looks.items()
    }
    size = {"place": picture.place, "width": picture.width, "height": picture.height}
    return {**size, "rgb": _text(picture.rgb), "looks": {form: look for form, look in looks.items() if look["mask"] or look["boxes"]}}


def _read(row: Any) -> Picture | None:
    """A row of the file; None where it does not fit."""
    try:
        place, width, height = (_whole(row[key]) for key in ("place", "width", "height"))
        if not (0 < width <= SIDE and 0 < height <= SIDE):
            return None
        rgb = _bytes(row["rgb"], 3 * width * height)
        looks = {form: _look(row["looks"][form], width, height) for form in ("fp32", "quantized") if form in row["looks"]}
        return Picture(place, width, height, rgb, looks)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError):
        return None


def _look(row: Any, width: int, height: int) -> Look:
    mask = _bytes(row["mask"], width * height) if row.get("mask") else b""
    boxes = tuple(Box(*(_whole(value) for value in box)) for box in row.get("boxes", ())[:_BOXES] if len(box) == 5)
    kept = (box for box in boxes if 0 <= box.left <= box.right < width and 0 <= box.top <= box.bottom < height)
    return Look(mask, tuple(kept))


def _whole(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{value!r} is no whole number")
    return value


def _bytes(text: Any, count: int) -> bytes:
    try:
        found = base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise ValueError(str(error)) from error
    if len(found) != count:
        raise ValueError(f"{len(found)} bytes instead of {count}")
    return found


def _text(content: bytes) -> str:
    return base64.b64encode(content).decode("ascii")
