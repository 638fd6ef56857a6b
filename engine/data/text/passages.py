"""Texts without labels, and pairs of texts with a score of how alike they are: what embeddings are measured on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.data.items import ItemData, Items, SplitName
from engine.data.text.labelled import split_files, three, told_lacking
from engine.data.text.rows import PAIRS, SCORES, SUFFIXES, TEXTS, Table, content_of, named, read_table
from engine.data.text.textfiles import decoded, lines_of
from engine.errors import EngineError


@dataclass(frozen=True)
class Passage:
    """``score`` is of the pair that the text is the first (``side`` 0) or second (1) of; None for a text alone."""

    text: str
    score: float | None = None
    side: int = 0


@dataclass(frozen=True, eq=False)
class Passages:
    """A split: inputs are tuples of one text, targets the passages themselves. The two texts of a pair follow one another."""

    rows: tuple[Passage, ...]

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, places: Sequence[int]) -> Items:
        some = [self.rows[i] for i in places]
        return Items([(row.text,) for row in some], some)


def load(place: Path, part: Any) -> ItemData:
    """A text file of one text a line; a table with a column of texts, or with two and a score. Raises EngineError, in one line with the
    file and the line, for what cannot be read."""
    notes: list[str] = []
    files: dict[SplitName, Path] | None = split_files(place) if place.is_dir() else {"train": place}
    if files is None:
        raise EngineError(f"{place} holds no table ({', '.join(SUFFIXES)}): give one, or a text file of one text a line")
    groups = {split: _groups(path, notes) for split, path in files.items()}
    return in_splits(str(place), groups, notes)


def in_splits(name: str, groups: Mapping[SplitName, Sequence[tuple[Passage, ...]]], notes: Sequence[str]) -> ItemData:
    """Texts alone, or pairs of them, as data in three splits."""
    found, notes = three(name, groups, notes)
    splits = {split: Passages(tuple(passage for group in part for passage in group)) for split, part in found.items()}
    return ItemData(name, splits["train"], splits["validation"], splits["test"], outputs=0, notes=tuple(notes))


def _groups(path: Path, notes: list[str]) -> list[tuple[Passage, ...]]:
    if path.suffix.lower() not in SUFFIXES:
        lines = [line.strip() for line in lines_of(decoded(path, content_of(path)))]
        return [(Passage(line),) for line in lines if line]
    table = read_table(path)
    lower = {name.lower(): name for name in table.columns}
    pair = next(((lower[a], lower[b]) for a, b in PAIRS if a in lower and b in lower), None)
    score = named(table.columns, (*SCORES, "label"))
    if pair is not None and score is not None:
        return _pairs(table, pair, score, notes)
    columns = pair or ((named(table.columns, TEXTS) or table.columns[0]),)
    cells = zip(*(table.column(name) for name in columns), strict=True)
    found: list[tuple[Passage, ...]] = [(Passage(str(cell)),) for row in cells for cell in row if cell is not None and str(cell).strip()]
    if not found:
        raise EngineError(f"{path} has no texts in the column {columns[0]!a}: name the column of texts text")
    return found


def _pairs(table: Table, pair: tuple[str, str], score: str, notes: list[str]) -> list[tuple[Passage, ...]]:
    found: list[tuple[Passage, ...]] = []
    lacking: list[int] = []
    for i, (first, second, value) in enumerate(zip(*(table.column(name) for name in (*pair, score)), strict=True)):
        if any(cell is None or str(cell).strip() == "" for cell in (first, second, value)):
            lacking.append(i)
            continue
        try:
            number = float(value)
        except (TypeError, ValueError):
            raise EngineError(f"{table.where(i)}: the score in {score!a} is no number: write how alike both texts are") from None
        found.append((Passage(str(first), number, 0), Passage(str(second), number, 1)))
    told_lacking(table, lacking, notes)
    return found
