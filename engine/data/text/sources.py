"""Pairs of a text and what is made of it (a translation, a summary), from a person's own files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.data.items import ItemData, Items, SplitName
from engine.data.text.labelled import split_files, three, told_lacking
from engine.data.text.rows import SOURCES, SUFFIXES, read_table
from engine.errors import EngineError


@dataclass(frozen=True)
class Pair:
    """A text, and the text that is to be made of it."""

    source: str
    target: str


@dataclass(frozen=True, eq=False)
class Pairs:
    """A split: inputs are tuples of one text, targets the texts that are to be made of them."""

    rows: tuple[Pair, ...]

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, places: Sequence[int]) -> Items:
        some = [self.rows[i] for i in places]
        return Items([(row.source,) for row in some], [row.target for row in some])


def load(place: Path, part: Any) -> ItemData:
    """A table of two columns, by their names or as they come. Raises EngineError, in one line with the file and the line, for what cannot
    be read."""
    notes: list[str] = []
    files: dict[SplitName, Path] | None = split_files(place) if place.is_dir() else {"train": place}
    if files is None:
        raise EngineError(f"{place} holds no table ({', '.join(SUFFIXES)}): give one with a column of sources and one of targets")
    return in_splits(str(place), {split: _pairs(path, notes) for split, path in files.items()}, notes)


def in_splits(name: str, rows: Mapping[SplitName, Sequence[Pair]], notes: Sequence[str]) -> ItemData:
    """Pairs as data in three splits."""
    found, notes = three(name, rows, notes)
    splits = {split: Pairs(tuple(part)) for split, part in found.items()}
    return ItemData(name, splits["train"], splits["validation"], splits["test"], outputs=0, notes=tuple(notes))


def _pairs(path: Path, notes: list[str]) -> list[Pair]:
    table = read_table(path)
    if len(table.columns) < 2:
        raise EngineError(f"{path} has {len(table.columns)} column: give a column of sources and one of targets")
    lower = {name.lower(): name for name in table.columns}
    columns = next(((lower[a], lower[b]) for a, b in SOURCES if a in lower and b in lower), None)
    if columns is None:
        columns = (table.columns[0], table.columns[1])
        notes.append(f"{path.name}: the source is {columns[0]!a}, the target {columns[1]!a}, by their place")
    found, lacking = [], []
    for i, (source, target) in enumerate(zip(*(table.column(name) for name in columns), strict=True)):
        if any(cell is None or str(cell).strip() == "" for cell in (source, target)):
            lacking.append(i)
        else:
            found.append(Pair(str(source), str(target)))
    told_lacking(table, lacking, notes)
    return found
