"""A table of images and the labels that hold for each: data for multilabel classification."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from engine.data.items import ItemData, SplitName
from engine.data.splits import completed
from engine.data.tables.csv_files import Table, read_tables
from engine.data.tables.pictures import names_images, pictures
from engine.errors import EngineError
from engine.plain_text import one_line

_CELLS = {"0": 0.0, "1": 1.0, "0.0": 0.0, "1.0": 1.0, "false": 0.0, "true": 1.0}


def load(place: Path, part: Any) -> ItemData:
    """Images that the first column names, and labels float32 (N, labels) of the other columns, 0 or 1 in each cell; see
    ``csv_files.read_tables``. Raises EngineError, with the line, for a cell that is neither."""
    tables = read_tables(place)
    first = tables["train"] if "train" in tables else next(iter(tables.values()))
    if not names_images(first, 0):
        raise EngineError(f"{first.where(0, 0)} is no image file: give images in the first column and labels of 0 and 1 in the others")
    labels = first.columns[1:]
    if not labels:
        raise EngineError(f"{first.path} has no column of labels: give one for each label, with 0 and 1 in its cells")
    targets = {split: _labels(table) for split, table in tables.items()}
    given, about, notes = pictures(part, place, tables, 0, targets)
    splits, origin = completed(given, "images", str(place))
    for split, found in targets.items():
        notes = (*notes, *_absent(split, found, labels))
    name = place.resolve().stem
    about = {**about, "labels": len(labels)}
    return ItemData(name, splits["train"], splits["validation"], splits["test"], len(labels), labels, about, (*notes, *origin))


def _labels(table: Table) -> Tensor:
    found = np.empty((len(table.rows), len(table.columns) - 1), dtype=np.float32)
    for row, cells in enumerate(table.rows):
        for column, cell in enumerate(cells[1:], 1):
            value = _CELLS.get(cell.strip().lower())
            if value is None:
                what = one_line(repr(cell[:60]), 60) if cell.strip() else "empty"
                raise EngineError(f"{table.where(row, column)} is {what}, neither 0 nor 1: correct it, or take the line out")
            found[row, column - 1] = value
    return torch.from_numpy(found)


def _absent(split: SplitName, targets: Tensor, labels: tuple[str, ...]) -> list[str]:
    never = [label for label, count in zip(labels, targets.sum(0).tolist(), strict=True) if not count]
    some = ", ".join(one_line(label, 40) for label in never[:3]) + (" …" if len(never) > 3 else "")
    return [f"{split}: no image has {len(never)} of {len(labels)} labels ({some})"] if never else []
