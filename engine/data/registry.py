"""The data sets there are. Cheap to import: what a data set needs is imported when it is loaded."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.errors import EngineError, UsageError, nearest

if TYPE_CHECKING:
    from engine.data.images.base import Data
    from engine.data.items import ItemData
    from engine.models.transform import Interpolation, Transform, Triple


@dataclass(frozen=True)
class DataEntry:
    """A data set by name. ``module`` has ``load(folder: Path | None, size: int | None) -> Data``; for another ``task`` than
    classification ``load(part: DataPart) -> ItemData``.

    ``classes`` and ``shape`` (3, H, W) are None where the folder decides. ``takes`` names the options of ``load`` that
    mean something to it; any other that is given is refused.
    """

    name: str
    description: str
    licence: str
    offline: bool
    classes: int | None
    shape: tuple[int, int, int] | None
    module: str
    takes: tuple[str, ...] = ()
    task: str = "classification"


_KNOWN = (
    DataEntry("digits", "1,797 handwritten digits, in scikit-learn", "BSD-3-Clause", True, 10, (3, 32, 32), "engine.data.images.digits"),
    DataEntry(
        "cifar10",
        "60,000 photographs (170 MB download)",
        "cite Krizhevsky 2009",
        False,
        10,
        (3, 32, 32),
        "engine.data.images.cifar10",
        ("folder",),
    ),
    DataEntry(
        "imagefolder",
        "your images, DIR/CLASS/*",
        "your own",
        True,
        None,
        None,
        "engine.data.images.imagefolder",
        ("folder", "size", "crop", "interpolation", "classes"),
    ),
    DataEntry(
        "diabetes", "442 patients in ten numbers, in scikit-learn", "Efron et al. 2004", True, None, None, "engine.data.tables.diabetes",
        task="regression",
    ),
    DataEntry(
        "digit-scenes", "scenes of two to four of these digits, with masks", "BSD-3-Clause", True, 11, (3, 64, 64),
        "engine.data.masks.scenes", task="segmentation",
    ),
    DataEntry(
        "digit-attributes", "these digits, and seven labels of each", "BSD-3-Clause", True, 7, (3, 32, 32),
        "engine.data.images.digit_attributes", task="multilabel",
    ),
    DataEntry(
        "digit-ink", "these digits, and how much ink each takes", "BSD-3-Clause", True, None, (3, 32, 32),
        "engine.data.images.digit_ink", task="regression",
    ),
    DataEntry(
        "digit-boxes", "scenes of several digits, with their boxes", "BSD-3-Clause", True, 10, (3, 64, 64),
        "engine.data.boxes.digit_boxes", task="detection",
    ),
    DataEntry(
        "python-modules", "some 3,000 paragraphs that CPython's modules carry, by module", "PSF-2.0", True, None, None,
        "engine.data.text.python_modules", task="text-classification",
    ),
    DataEntry(
        "reversed-digits", "4,800 rows of digits in words, to be reversed, made", "MIT", True, None, None,
        "engine.data.text.reversed_digits", task="seq2seq",
    ),
    DataEntry(
        "python-paragraphs", "the same paragraphs without labels", "PSF-2.0", True, None, None, "engine.data.text.python_paragraphs",
        task="embeddings",
    ),
)  # fmt: skip
# Who reads one's own files for a task: each has ``load(place: Path, part: DataPart) -> ItemData``.
READERS: dict[str, str] = {
    "multilabel": "engine.data.tables.labels",
    "regression": "engine.data.tables.columns",
    "segmentation": "engine.data.masks.folder",
    "detection": "engine.data.boxes.folder",
    "text-classification": "engine.data.text.labelled",
    "pair-classification": "engine.data.text.labelled_pairs",
    "token-classification": "engine.data.text.tagged",
    "embeddings": "engine.data.text.passages",
    "seq2seq": "engine.data.text.sources",
}
IMAGENET_CLASSES = 1000
ENTRIES: dict[str, DataEntry] = {entry.name: entry for entry in _KNOWN}


def load(
    name_or_dir: str, *, mean: Triple | None = None, std: Triple | None = None, size: int | None = None, folder: str | None = None,
    transform: Transform | None = None, crop: int | None = None, interpolation: Interpolation | None = None, classes: str | None = None,
    channels: int | None = None, calibration_from: str | None = None,
) -> Data:  # fmt: skip
    """Load a data set by registry name, or from a folder: CIFAR-10 where the folder is or holds that, else images by class.

    A name wins over a folder of the same name (write ``./digits`` for the folder). ``folder`` is where a named data set
    lies; ``size`` resizes images of a folder to size x size pixels; ``mean`` and ``std``, for pixels in 0..1, replace the
    data set's own; ``crop``, ``interpolation`` and ``classes`` are those of ``imagefolder.load``. ``calibration_from`` is a folder of
    images without labels, which calibrate.
    ``transform`` is what a model expects of photographs; data of one size take no notice of it,
    and ``size``, ``mean`` and ``std`` win over it. ``UsageError`` for an unknown name, an option the data set does not take or
    values that cannot normalise; ``EngineError`` for a folder that is missing or does not hold what it should.
    """
    entry = ENTRIES.get(name_or_dir)
    if entry is not None and entry.task != "classification":
        raise UsageError(f"{name_or_dir} is data for {entry.task}: give --task {entry.task}, or other data")
    if entry is None:
        place: Path | None = _existing(name_or_dir)
        entry = _entry_for(name_or_dir)
        if folder is not None:
            raise UsageError(f"two folders for the data, {name_or_dir} and {folder}: give one")
    else:
        place = None if folder is None else _existing(folder, is_path=True)
    asked = {"crop": crop, "interpolation": interpolation, "classes": classes}
    _check_taken(entry, {"folder": folder, "size": size, "channels": channels, **asked})
    prepared: dict[str, Any] = {"transform": transform} if transform is not None and "size" in entry.takes else {}
    prepared |= {option: value for option, value in asked.items() if value is not None}
    data: Data = import_module(entry.module).load(place, size, **prepared)
    if calibration_from is not None:
        from engine.data.images.calibration import with_calibration

        data = with_calibration(data, Path(calibration_from).expanduser(), any_size=entry.shape is not None)
    if mean is None and std is None:
        return data
    return data.with_normalization(mean or data.mean, std or data.std)


def of_task(task: str) -> tuple[DataEntry, ...]:
    """The named data sets of a task."""
    return tuple(entry for entry in ENTRIES.values() if entry.task == task)


def items(part: Any, task: str) -> ItemData:
    """The data of ``task`` that a recipe's ``data`` names, by name or as a path to one's own. Raises UsageError for an unknown name or
    the data of another task, EngineError for files that are missing or do not hold what they should."""
    entry = ENTRIES.get(part.name)
    if entry is None:
        names = [one.name for one in of_task(task)]
        place = Path(part.name).expanduser()
        if not place.exists():
            if os.sep in part.name or part.name.startswith((".", "~")):
                raise EngineError(f"data {part.name} does not exist: check the path given to --data")
            raise UsageError(f"unknown data {part.name!r} for {task}, and no file or folder of that name: {nearest(part.name, names)}")
        if task not in READERS:
            raise UsageError(f"the task {task} reads no files of one's own: give {nearest(part.name, names)}")
        found: ItemData = import_module(READERS[task]).load(place, part)
        return found
    if entry.task != task:
        names = [one.name for one in of_task(task)]
        raise UsageError(f"{part.name} is data for {entry.task}, and the task is {task}: give {', '.join((*names, 'a path to your own'))}")
    _check_taken(entry, part.of_images())
    named: ItemData = import_module(entry.module).load(part)
    return named


def _check_taken(entry: DataEntry, asked: Mapping[str, Any]) -> None:
    """Raises UsageError for an option that means nothing to a data set."""
    for option, value in asked.items():
        if value is not None and option not in entry.takes:
            raise UsageError(f"data set {entry.name} takes no {option} (data.{option} is {value}): leave it out")


def known_as(name_or_dir: str) -> str:
    """What weights for this data are kept under: the name of a data set, also of one that lies in a folder, or the folder."""
    found = name_or_dir if name_or_dir in ENTRIES else _entry_for(name_or_dir).name
    return found if ENTRIES[found].classes or found == name_or_dir else name_or_dir


def is_imagenet(classes: Sequence[str]) -> bool:
    """Whether class names are those of ImageNet's 1,000 classes in its order, as WordNet ids or as numbers of three digits."""
    names = list(classes)
    if len(names) != IMAGENET_CLASSES or names != sorted(names):
        return False
    return all(re.fullmatch(r"n\d{8}", name) for name in names) or names == [f"{number:03}" for number in range(IMAGENET_CLASSES)]


def holds_imagenet(name_or_dir: str) -> bool:
    """Whether a folder of images by class has ImageNet's classes, from the names of its folders alone."""
    place = Path(name_or_dir).expanduser()
    if name_or_dir in ENTRIES or not place.is_dir():
        return False
    try:
        top = place / "train" if (place / "train").is_dir() else place
        return is_imagenet(sorted(entry.name for entry in top.iterdir() if entry.is_dir() and not entry.name.startswith(".")))
    except OSError:
        return False


def _existing(text: str, is_path: bool = False) -> Path:
    """``text`` as a folder that is there; a name that looks like no path is a ``UsageError`` instead of a missing folder."""
    place = Path(text).expanduser()
    if text and place.is_dir():
        return place
    if text and place.exists():
        raise EngineError(f"data {text} is a file: give the folder that holds the images")
    if is_path or os.sep in text or text.startswith((".", "~")):
        raise EngineError(f"data folder {text} does not exist: check the path given to --data")
    raise UsageError(f"unknown data set {text!r} and no folder of that name: {nearest(text, list(ENTRIES))}")


def _entry_for(text: str) -> DataEntry:
    from engine.data.images import cifar10

    return ENTRIES["cifar10" if cifar10.find(Path(text).expanduser()) else "imagefolder"]
