"""Texts, or pairs of them, with a label each, from a person's own files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.data.items import SPLIT_NAMES, ItemData, Items, SplitName, divided
from engine.data.text.rows import LABELS, PAIRS, SUFFIXES, TEXTS, Table, content_of, named, read_table
from engine.data.text.textfiles import decoded
from engine.errors import EngineError

SPLIT_SEED = 11
# Of the rows of a file, those that may lack a cell and be passed over.
_MAY_LACK = 0.1
_FOLDERS: Mapping[SplitName, tuple[str, ...]] = {
    "train": ("train", "training"), "validation": ("validation", "valid", "val", "dev"), "test": ("test", "testing"),
}  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One text or two of them, its label as it was written, and where it stands."""

    texts: tuple[str, ...]
    label: str
    where: str


@dataclass(frozen=True, eq=False)
class Rows:
    """A split of rows: inputs and targets are lists of texts and labels. What a model makes of them is the task's."""

    rows: tuple[Row, ...]

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, places: Sequence[int]) -> Items:
        some = [self.rows[i] for i in places]
        return Items([row.texts for row in some], [row.label for row in some])


def load(place: Path, part: Any) -> ItemData:
    """Texts with a label each. Raises EngineError, in one line with the file and the line, for what cannot be read."""
    return labelled(place, pairs=False)


def labelled(place: Path, pairs: bool) -> ItemData:
    """The rows of a file, or of a folder of files or of classes, in three splits."""
    notes: list[str] = []
    files = split_files(place) if place.is_dir() else None
    if place.is_dir() and files is None:
        rows = _by_class(place, notes)
    elif files is not None:
        rows = {split: _rows(read_table(path), pairs, notes) for split, path in files.items()}
    else:
        rows = {"train": _rows(read_table(place), pairs, notes)}
    return in_splits(str(place), rows, notes)


def in_splits(name: str, rows: Mapping[SplitName, Sequence[Row]], notes: Sequence[str]) -> ItemData:
    """Rows as data in three splits; those that are missing are drawn from the training split, and a note says so."""
    found, notes = three(name, rows, notes)
    labels = sorted({row.label for part in found.values() for row in part})
    if len(labels) < 2:
        raise EngineError(f"{name} has {'one label' if labels else 'no labels'}: a classification tells two or more apart")
    seen = {row.label for row in found["train"]}
    if absent := [label for label in labels if label not in seen]:
        notes = [*notes, f"{len(absent)} of {len(labels)} labels are not in the training split, which calibrates"]
    splits = {split: Rows(tuple(part)) for split, part in found.items()}
    counts = Counter(row.label for row in found["test"])
    about = {"labels": {label: counts[label] for label in labels}} if len(labels) <= 50 else {}
    return ItemData(
        name, splits["train"], splits["validation"], splits["test"], len(labels), tuple(labels), about=about, notes=tuple(notes)
    )


def three(name: str, rows: Mapping[SplitName, Sequence[Any]], notes: Sequence[str]) -> tuple[dict[SplitName, list[Any]], list[str]]:
    """The three splits of what is given in one, two or three of them, and the notes with how they were made."""
    found: dict[SplitName, list[Any]] = {split: list(rows.get(split, ())) for split in SPLIT_NAMES}
    said = list(notes)
    missing = [split for split in SPLIT_NAMES if not found[split]]
    if not missing:
        return found, said
    if "train" in missing:
        # A file for test alone: calibration needs other items.
        source: SplitName = "test" if found["test"] else "validation"
        found = {"train": found[source], "validation": [], "test": []}
        missing = ["validation", "test"]
    if len(found["train"]) < 3:
        raise EngineError(f"{name} has {len(found['train'])} rows, which cannot be divided into three splits: give three or more")
    places = divided(len(found["train"]), SPLIT_SEED, *((0.2, 0.1) if "test" in missing else (0.1, 0.1)))
    whole = found["train"]
    kept = [i for split in SPLIT_NAMES if split == "train" or split not in missing for i in places[split]]
    for split in missing:
        found[split] = [whole[i] for i in places[split]]
    found["train"] = [whole[i] for i in kept]
    said.append(f"{' and '.join(missing)}: {', '.join(f'{len(found[split]):,}' for split in missing)} rows drawn from the others")
    return found, said


def split_files(folder: Path) -> dict[SplitName, Path] | None:
    """The tables of a folder by the split that their names tell, one alone as training; None where there is none."""
    tables = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and path.is_file() and path.name[0] != ".")
    if not tables:
        return None
    found: dict[SplitName, Path] = {}
    for split, words in _FOLDERS.items():
        named_so = [path for path in tables if any(path.stem.lower().startswith(word) for word in words)]
        if len(named_so) > 1:
            raise EngineError(f"{folder} holds {len(named_so)} files for {split}, {named_so[0].name} and {named_so[1].name}: keep one")
        if named_so:
            found[split] = named_so[0]
    if not found and len(tables) == 1:
        return {"train": tables[0]}
    if not found:
        raise EngineError(f"{folder} holds {len(tables)} tables, none named train or test: give one of them, or name them so")
    return found


def _by_class(folder: Path, notes: list[str]) -> dict[SplitName, list[Row]]:
    """Text files by class, below folders for the splits where there are such."""
    splits = {split: next((folder / word for word in words if (folder / word).is_dir()), None) for split, words in _FOLDERS.items()}
    given = {split: inner for split, inner in splits.items() if inner is not None} or {"train": folder}
    found: dict[SplitName, list[Row]] = {}
    for split, inner in given.items():
        rows = []
        for kind in sorted(one for one in inner.iterdir() if one.is_dir() and not one.name.startswith(".")):
            for path in sorted(kind.rglob("*.txt")):
                content = content_of(path)
                if not content.strip():
                    notes.append(f"{path} is empty and was passed over")
                    continue
                rows.append(Row((decoded(path, content).strip(),), kind.name, str(path)))
        found[split] = rows
    if not any(found.values()):
        raise EngineError(f"{folder} holds no table ({', '.join(SUFFIXES)}) and no folders of classes with .txt files: give a file")
    return found


def _rows(table: Table, pairs: bool, notes: list[str]) -> list[Row]:
    texts, label = _columns(table, pairs, notes)
    columns = [table.column(name) for name in (*texts, label)]
    rows, lacking = [], []
    for i, cells in enumerate(zip(*columns, strict=True)):
        if any(cell is None or cell != cell or str(cell).strip() == "" for cell in cells):
            lacking.append(i)
            continue
        for name, cell in zip(texts, cells, strict=False):
            if not isinstance(cell, str | int | float):
                raise EngineError(f"{table.where(i)}: {name!a} is a {type(cell).__name__}, not text: name the columns text and label")
        rows.append(Row(tuple(str(cell) for cell in cells[:-1]), label_text(cells[-1], table, i), table.where(i)))
    told_lacking(table, lacking, notes)
    return rows


def told_lacking(table: Table, lacking: Sequence[int], notes: list[str]) -> None:
    """Adds a note on rows that lack a cell. Raises EngineError where they are many: the columns are then others than was thought."""
    if not lacking:
        return
    if len(lacking) > _MAY_LACK * len(table.cells):
        raise EngineError(f"{table.where(lacking[0])} lacks a cell, as {len(lacking):,} of {len(table.cells):,} rows do: fill them in")
    notes.append(f"{len(lacking):,} rows lack a cell and were passed over, line {table.lines[lacking[0]]:,} of {table.path.name} first")


def label_text(value: Any, table: Table, row: int) -> str:
    """A label as text: numbers that are whole lose their point. Raises EngineError for a list or an object."""
    if isinstance(value, bool):
        return str(int(value))
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if not isinstance(value, str | int | float):
        raise EngineError(f"{table.where(row)}: the label is a {type(value).__name__}: give one label a row")
    text = str(value).strip()
    return text[:-2] if text.endswith(".0") and text[:-2].isdigit() else text


def _columns(table: Table, pairs: bool, notes: list[str]) -> tuple[tuple[str, ...], str]:
    """The columns of texts and label, by name, else by place."""
    wanted = 3 if pairs else 2
    if len(table.columns) < wanted:
        raise EngineError(f"{table.path} has {len(table.columns)} columns: give {wanted}, {'two texts' if pairs else 'a text'} and a label")
    label = named(table.columns, LABELS)
    lower = {name.lower(): name for name in table.columns}
    pair = next(((lower[a], lower[b]) for a, b in PAIRS if a in lower and b in lower and lower[b] != label), None)
    text = named(table.columns, TEXTS)
    texts: tuple[str, ...] | None = pair if pairs else (text,) if text else pair
    if texts is None or label is None:
        rest = [name for name in table.columns if name != label]
        texts = texts or tuple(rest[: 2 if pairs else 1])
        label = label or next(name for name in reversed(table.columns) if name not in texts)
        headed = "" if table.headed else "; its first row is no header"
        notes.append(f"{table.path.name}: text is {' and '.join(map(ascii, texts))}, the label {label!a}, by their place{headed}")
    return texts, label
