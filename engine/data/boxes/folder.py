"""One's own images with boxes: COCO's JSON, YOLO's labels or VOC's XML, told apart by what is there."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from engine.data.boxes import coco, voc, yolo
from engine.data.boxes.files import Annotated, FileImages, Letterbox, Row, upright
from engine.data.images.image_files import told_size
from engine.data.images.imagefolder import class_lines
from engine.data.items import ItemData, ItemSplit, SplitName
from engine.data.splits import completed
from engine.errors import EngineError, UsageError
from engine.plain_text import one_line

# What the sides of images are a multiple of: the coarsest cells of common detectors.
STEP = 32
# Without --size no image is enlarged beyond this.
LARGEST = 640


def load(place: Path, part: Any) -> ItemData:
    """Images float32 (N, channels, S, S) in 0..1 (less ``data.mean``, by ``data.std``, where these are given), and a target for each.

    Images keep their proportions: the longer side becomes ``data.size`` pixels, or that of the first image, 640 at most, rounded up to a
    multiple of 32; the rest of the square is grey. Splits that the data do not tell are taken from the training images. Raises UsageError
    for options that mean nothing here, EngineError with the file and the row for what cannot be read."""
    if part.crop is not None:
        raise UsageError(f"data.crop {part.crop}: boxes belong to whole images: leave it out, or give --size")
    found = read(place, _names(part.classes) if part.classes is not None else None)
    side, note = _side(found, part.size)
    letterbox = Letterbox(
        side, part.interpolation or "bilinear", part.mean or (0.0, 0.0, 0.0), part.std or (1.0, 1.0, 1.0), part.channels or 3
    )
    given: dict[SplitName, ItemSplit] = {split: FileImages(rows, letterbox) for split, rows in found.rows.items()}
    splits, origin = completed(given if "train" in given else {"train": next(iter(given.values()))}, "images", str(place))
    if "train" not in given:
        origin = (f"nothing is named train: all is taken from {next(iter(given))}", *origin)
    counted = sum(len(row.boxes) for rows in found.rows.values() for row in rows)
    shared = _shared(found.rows)
    about = f"{found.kind}: {counted:,} boxes of {len(found.labels)} classes"
    return ItemData(
        place.resolve().stem if place.is_file() else place.resolve().name, splits["train"], splits["validation"], splits["test"],
        outputs=len(found.labels), labels=found.labels, about={"size": [side, side]}, notes=(about, note, *origin, *shared, *found.notes),
    )  # fmt: skip


def read(place: Path, classes: tuple[str, ...] | None = None) -> Annotated:
    """The annotations at ``place``, of whichever format they are. Raises EngineError where they are of none."""
    try:
        return _read(place, classes)
    except OSError as error:
        raise EngineError(f"{place} cannot be listed ({error.strerror}): check its permissions") from error


def _read(place: Path, classes: tuple[str, ...] | None) -> Annotated:
    if (folders := yolo.find(place)) is not None:
        return yolo.read(place, folders, classes)
    if classes is not None:
        raise UsageError(f"data.classes: the annotations of {place} name their classes themselves: leave it out")
    if (folder := voc.find(place)) is not None:
        return voc.read(folder)
    if (files := coco.find(place)) is not None:
        return coco.read(place, files)
    raise EngineError(
        f"{place} holds no boxes: give annotations/*.json as COCO, images/ and labels/*.txt as YOLO, or Annotations/*.xml as VOC"
    )


def _side(found: Annotated, asked: int | None) -> tuple[int, str]:
    row = next(row for rows in found.rows.values() for row in rows)
    upright(row)
    wanted = min(max(told_size(row.path)), LARGEST) if asked is None else asked
    side = -(-wanted // STEP) * STEP
    rounded = f" ({asked} rounded up to a multiple of {STEP})" if asked is not None and side != asked else ""
    return side, f"images fitted into {side}×{side} pixels{rounded}, proportions kept, grey around"


def _names(file: str) -> tuple[str, ...]:
    return tuple(one_line(name, 80) for name in class_lines(file))


def _shared(rows: Mapping[SplitName, Sequence[Row]]) -> list[str]:
    """A note on images that several splits name."""
    counts = Counter(path for some in rows.values() for path in {row.path for row in some})
    several = [path for path, count in counts.items() if count > 1]
    return [f"{len(several):,} images are in several splits, trained on and tested too (the first: {several[0]})"] if several else []
