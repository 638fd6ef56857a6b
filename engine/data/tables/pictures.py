"""Tables whose rows name an image: numbers that an image is held against."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from engine.data.images.image_files import SUFFIXES, told_size, turned
from engine.data.images.preparation import Preparation, preparation
from engine.data.items import Items, ItemSplit, SplitName
from engine.data.tables.csv_files import Table
from engine.errors import EngineError
from engine.plain_text import one_line

_LARGEST = 224
_LOOKED_AT = 2000
# Where images lie beside a table, if not as it says itself.
_FOLDERS = ("", "images", "image", "imgs", "img")


@dataclass(frozen=True, eq=False)
class PictureSplit:
    """Images by path and their ``targets`` float32 (N, columns), read when they are asked for."""

    paths: Sequence[str]
    targets: Tensor
    preparation: Preparation

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, places: Sequence[int]) -> Items:
        """Images float32 (N, channels, H, W) and their targets."""
        images = torch.stack([self.preparation.image(self.paths[place]) for place in places])
        return Items(self.preparation.normalized(images), self.targets[torch.tensor(places, dtype=torch.long)])


def names_images(table: Table, column: int) -> bool:
    """Whether a column of the table holds file names of images."""
    return Path(table.rows[0][column].strip()).suffix.lower() in SUFFIXES


def pictures(
    part: Any, place: Path, tables: Mapping[SplitName, Table], column: int, targets: Mapping[SplitName, Tensor]
) -> tuple[dict[SplitName, ItemSplit], dict[str, Any], tuple[str, ...]]:
    """The splits of images that a ``column`` names, what the report says of them, and notes. Raises EngineError, with the line, for an
    image that is not there."""
    paths = {split: _paths(table, column) for split, table in tables.items()}
    every = [path for some in paths.values() for path in some]
    looked_at = [path for some in paths.values() for path in some[:: max(1, -(-len(some) // _LOOKED_AT))]]
    prepared, notes = preparation(part, [told_size(path) for path in looked_at], place, _LARGEST)
    if count := turned(looked_at):
        notes = (*notes, f"{count:,} of {len(looked_at):,} images looked at ask by EXIF to be turned: they are not, as in torchvision")
    if again := len(every) - len(set(every)):
        notes = (*notes, f"{again:,} of {len(every):,} rows name an image that another row names: it may be trained on and tested too")
    splits: dict[SplitName, ItemSplit] = {split: PictureSplit(some, targets[split], prepared) for split, some in paths.items()}
    return splits, prepared.about(), notes


def _paths(table: Table, column: int) -> list[str]:
    found = []
    for row, cells in enumerate(table.rows):
        name = cells[column].strip()
        if not name or len(name) > 4096 or "\0" in name:
            raise EngineError(f"{table.where(row, column)} names no image: give a file name, or take the line out")
        near = [table.path.parent / folder / name for folder in _FOLDERS]
        path = next((path for path in near if path.is_file()), None)
        if path is None:
            raise EngineError(
                f"{table.where(row, column)}: there is no image {one_line(name, 80)} in {table.path.parent}: add it, or correct it"
            )
        found.append(str(path))
    return found
