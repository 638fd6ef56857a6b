"""Images with boxes as files, brought to one size when they are asked for."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from engine.data.boxes.base import Target, target
from engine.data.images.image_files import opened, orientation, told_size
from engine.data.images.preparation import normalized
from engine.data.items import Items, SplitName
from engine.errors import EngineError
from engine.models.transform import Interpolation, Triple

# Around an image that is no square: the grey that ultralytics' and other detectors were trained with.
GREY = 114
_QUARTER_TURNS = (5, 6, 7, 8)
_INTERPOLATIONS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


Box = tuple[float, float, float, float]
"""(x1, y1, x2, y2)."""
PARTS = (1.0, 1.0)


@dataclass(frozen=True)
class Object:
    """One annotated object; ``place`` is the file and the row of it, for a person."""

    box: Box
    label: int
    place: str
    crowd: int = 0


@dataclass(frozen=True)
class Row:
    """One image: its ``path`` and what its annotation says. ``boxes`` are (x1, y1, x2, y2) in pixels, or in parts of the image where
    ``parts``; ``size`` is the (width, height) that the annotation tells, None where it tells none."""

    path: str
    boxes: tuple[Box, ...] = ()
    labels: tuple[int, ...] = ()
    crowds: tuple[int, ...] = ()
    size: tuple[int, int] | None = None
    parts: bool = False


@dataclass
class Passed:
    """What was not used of annotations, counted by what it is, with the place of the first."""

    found: dict[str, tuple[int, str]] = field(default_factory=dict)

    def add(self, what: str, place: str, times: int = 1) -> None:
        count, first = self.found.get(what, (0, place))
        self.found[what] = count + times, first

    def notes(self) -> list[str]:
        return [f"{count:,} {what} (the first: {first})" for what, (count, first) in self.found.items()]


@dataclass(frozen=True)
class Annotated:
    """What a reader finds: rows by split, the names of the classes, and notes for a person."""

    kind: str
    rows: dict[SplitName, list[Row]]
    labels: tuple[str, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Letterbox:
    """Images scaled so that their longer side is ``side`` pixels, in the middle of a grey square; then normalized."""

    side: int
    interpolation: Interpolation = "bilinear"
    mean: Triple = (0.0, 0.0, 0.0)
    std: Triple = (1.0, 1.0, 1.0)
    channels: int = 3

    def scaled(self, width: int, height: int) -> tuple[int, int, int, int]:
        """Left and top of an image of this size in the square, and its width and height there."""
        longer = max(width, height)
        across, down = max(1, round(width * self.side / longer)), max(1, round(height * self.side / longer))
        return (self.side - across) // 2, (self.side - down) // 2, across, down

    def image(self, image: Image.Image) -> Tensor:
        """uint8 (channels, side, side)."""
        left, top, across, down = self.scaled(image.width, image.height)
        square = Image.new("RGB", (self.side, self.side), (GREY, GREY, GREY))
        square.paste(
            image if image.size == (across, down) else image.resize((across, down), _INTERPOLATIONS[self.interpolation]), (left, top)
        )
        pixels = np.array(square if self.channels == 3 else square.convert("L"))
        return torch.from_numpy(pixels).view(self.side, self.side, self.channels).permute(2, 0, 1)

    def boxes(self, boxes: Tensor, width: int, height: int) -> Tensor:
        """Boxes of an image of this size where they lie in the square."""
        left, top, across, down = self.scaled(width, height)
        scale = torch.tensor([across / width, down / height] * 2)
        return boxes * scale + torch.tensor([left, top, left, top])

    def normalized(self, images: Tensor) -> Tensor:
        """float32 from uint8 (N, channels, side, side)."""
        return normalized(images, self.mean, self.std)


@dataclass(frozen=True, eq=False)
class FileImages:
    """Images by path. One whose annotation tells the size that it has when it is turned as its EXIF data ask is turned."""

    rows: Sequence[Row]
    letterbox: Letterbox

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, places: Sequence[int]) -> Items:
        """Images float32 (N, channels, side, side) and a target for each. Raises EngineError for a file that cannot be decoded."""
        rows = [self.rows[place] for place in places]
        found = [self._read(row) for row in rows]
        images = torch.stack([image for image, _ in found])
        return Items(self.letterbox.normalized(images), [one for _, one in found])

    def _read(self, row: Row) -> tuple[Tensor, Target]:
        image = opened(row.path, upright(row))
        boxes = torch.tensor(row.boxes, dtype=torch.float32).reshape(-1, 4)
        if row.parts:
            boxes = boxes * torch.tensor([image.width, image.height] * 2)
        return self.letterbox.image(image), target(self.letterbox.boxes(boxes, *image.size), row.labels, row.crowds)


def upright(row: Row) -> bool:
    """Whether an image is to be turned as its EXIF data ask: parts of an image are counted on what is seen, and pixels where the size
    that the annotation tells is that of the turned image. Raises EngineError where it is neither size."""
    if row.parts:
        return True
    if row.size is None:
        return False
    width, height = told_size(row.path)
    if row.size == (width, height):
        return False
    if row.size == (height, width) and orientation(row.path) in _QUARTER_TURNS:
        return True
    raise EngineError(
        f"{row.path} is {width}x{height} and its annotation says {row.size[0]}x{row.size[1]}: give the image that was annotated"
    )


def row(path: str, objects: Iterable[Object], size: tuple[int, int] | None, extent: tuple[float, float], passed: Passed) -> Row:
    """The row of an image of ``extent`` (width, height), in the unit of the boxes; an extent of ``PARTS`` is for boxes in parts of it.

    Boxes are clipped to the image, and what is then of no size is passed over."""
    kept = []
    for one in objects:
        inside = clipped(one.box, *extent)
        if not (inside[0] < inside[2] and inside[1] < inside[3]):
            passed.add("boxes passed over: of no size, or outside of their image", one.place)
            continue
        # Rounding alone is nobody's mistake.
        if max(abs(a - b) for a, b in zip(inside, one.box, strict=True)) > max(extent) * 1e-3:
            passed.add("boxes clipped: they stood out of their image", one.place)
        kept.append((inside, one.label, one.crowd))
    return Row(path, tuple(k[0] for k in kept), tuple(k[1] for k in kept), tuple(k[2] for k in kept), size, extent == PARTS)


def in_pixels(objects: Iterable[Object], file: Path) -> None:
    """Raises EngineError where no object reaches beyond the first pixel: what is meant are parts of the image, as in YOLO's labels."""
    some = list(objects)
    if some and all(max(one.box) <= 1 for one in some):
        raise EngineError(f"{file}: no box reaches beyond 1 ({some[0].place}): boxes are in pixels here, not in parts of the image")


def clipped(box: Box, width: float, height: float) -> Box:
    """The part of ``box`` inside of an image."""
    x1, y1, x2, y2 = box
    return min(max(x1, 0.0), width), min(max(y1, 0.0), height), min(max(x2, 0.0), width), min(max(y2, 0.0), height)


def under(top: Path, path: Path) -> bool:
    """Whether ``path`` lies below ``top``, links resolved: an annotation names files of its own data set alone."""
    return path.resolve().is_relative_to(top.resolve())
