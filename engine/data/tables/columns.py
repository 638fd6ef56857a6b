"""A table of numbers to be predicted, from an image or from other columns: data for regression."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from engine.data.items import ItemData, Items, ItemSplit, MemoryItems, SplitName
from engine.data.splits import completed
from engine.data.tables.csv_files import Table, read_tables
from engine.data.tables.pictures import names_images, pictures
from engine.errors import EngineError, UsageError
from engine.plain_text import one_line

_TARGET = "target"


def load(place: Path, part: Any) -> ItemData:
    """Images or features float32 (N, columns) and targets float32 (N, columns) as they stand in the table; see
    ``csv_files.read_tables``. Targets are the columns whose names begin with ``target``, or the last one; where a column names image
    files those are the inputs, else all other columns. Raises EngineError, with the line, for a cell that is no number."""
    tables = read_tables(place)
    first = tables["train"] if "train" in tables else next(iter(tables.values()))
    every = range(len(first.columns))
    wanted = [i for i in every if first.columns[i].lower().startswith(_TARGET)] or [every[-1]]
    others = [i for i in every if i not in wanted]
    if not others:
        raise EngineError(f"{first.path} has targets alone ({first.columns[wanted[0]]}): give columns that they are predicted from")
    targets = {split: _float32(table, wanted) for split, table in tables.items()}
    images = next((i for i in others if names_images(first, i)), None)
    labels = tuple(first.columns[i] for i in wanted)
    said = [f"{_listed(labels)} {'is' if len(labels) == 1 else 'are'} predicted" + ("" if _named(labels) else ", the last column")]
    given: dict[SplitName, ItemSplit]
    if images is None:
        if part.size or part.crop or part.interpolation or part.mean or part.std or part.channels:
            raise UsageError(f"{place} names no images: leave data.size, mean, std and the like out")
        given = {s: MemoryItems(Items(_float32(table, others), targets[s])) for s, table in tables.items()}
        about: dict[str, Any] = {"features": len(others)}
        said.append(f"from {len(others)} column{'s' * (len(others) != 1)} of numbers, as they are")
        notes: tuple[str, ...] = ()
    else:
        given, about, notes = pictures(part, place, tables, images, targets)
        rest = tuple(first.columns[i] for i in others if i != images)
        said.append(f"from the images of {_listed((first.columns[images],))}" + (f"; {_listed(rest)} passed over" if rest else ""))
    splits, origin = completed(given, "items", str(place))
    return ItemData(
        place.resolve().stem, splits["train"], splits["validation"], splits["test"], len(wanted), labels, about,
        (" ".join(said), *notes, *origin),
    )  # fmt: skip


def _float32(table: Table, columns: list[int]) -> Tensor:
    return torch.from_numpy(table.numbers(columns).astype(np.float32))


def _named(labels: tuple[str, ...]) -> bool:
    return labels[0].lower().startswith(_TARGET)


def _listed(names: tuple[str, ...]) -> str:
    return ", ".join(one_line(name, 40) for name in names[:4]) + (" …" if len(names) > 4 else "")
