"""Rows of text from a person's own files: CSV, TSV, JSON lines, JSON, parquet, or folders of text files by class.

A row is told by its file and its line wherever something is wrong with it; nothing of a file is printed raw.
"""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.data.text.textfiles import decoded
from engine.errors import EngineError
from engine.plain_text import plain
from engine.reading import MB, check_depth, read_bytes, separator_of, told_separator

SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", ".json", ".parquet")
LARGEST = 4000 * MB
# A cell longer than this is no sentence: a quote was not closed, or the file is another kind.
LONGEST_CELL = 10 * MB
_SEPARATORS = (",", ";", "\t", "|")


@dataclass(frozen=True)
class Table:
    """The rows of a file: ``columns`` are its names, ``cells`` are by row and column, None where one is missing, ``lines`` are where a row
    is in the file, counted from 1. ``headed`` says that the file names its columns."""

    path: Path
    columns: tuple[str, ...]
    cells: tuple[tuple[Any, ...], ...]
    lines: tuple[int, ...]
    headed: bool = True

    def column(self, name: str) -> list[Any]:
        at = self.columns.index(name)
        return [row[at] for row in self.cells]

    def where(self, row: int) -> str:
        """The file and the line of a row, for an error."""
        return f"{self.path}, line {self.lines[row]:,}"


def read_table(path: Path) -> Table:
    """Raises EngineError, in one line, for a file that is empty, of another kind, in another encoding than UTF-8, or not well formed."""
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise EngineError(f"{path} is no table: give a file in {', '.join(SUFFIXES)}")
    if suffix == ".parquet":
        found = _parquet(path)
    else:
        text = decoded(path, content_of(path))
        found = _separated(path, text) if suffix in (".csv", ".tsv") else _json(path, text)
    if not found.cells:
        raise EngineError(f"{path} has no rows: give a file with text in it")
    return found


def content_of(path: Path) -> bytes:
    """The bytes of a file. Raises EngineError where it cannot be read."""
    try:
        return read_bytes(path, LARGEST)
    except OSError as error:
        raise EngineError(f"{path} cannot be read ({error.strerror or error}): check the path given to --data") from error


def _separated(path: Path, text: str) -> Table:
    told, text = told_separator(text)
    first = next((line for line in text.splitlines() if line.strip()), "")
    separator = told or ("\t" if path.suffix.lower() == ".tsv" else separator_of(first, _SEPARATORS))
    # csv's own limit is 128 KB, which long documents pass.
    before = csv.field_size_limit(LONGEST_CELL)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    rows: list[tuple[str, ...]] = []
    lines: list[int] = []
    try:
        end = 0
        for row in reader:
            if row:
                rows.append(tuple(row))
                lines.append(end + 1)
            end = reader.line_num
    except csv.Error as error:
        raise EngineError(f"{path}, line {reader.line_num:,}: {plain(str(error))}: is a quote not closed?") from error
    finally:
        csv.field_size_limit(before)
    if not rows:
        raise EngineError(f"{path} is empty: give a file with text in it")
    columns = tuple(name.strip() for name in rows[0])
    headed = bool(NAMES & {name.lower() for name in columns}) or not _is_a_row(rows)
    if headed:
        rows, lines = rows[1:], lines[1:]
    else:
        columns = tuple(f"column {i + 1}" for i in range(len(rows[0])))
    return Table(
        path, columns, tuple(_fitted(path, row, len(columns), line) for row, line in zip(rows, lines, strict=True)), tuple(lines), headed
    )


def _is_a_row(rows: Sequence[tuple[str, ...]]) -> bool:
    """Whether the first row is no header: a cell of it is one of the few values that its column has."""
    others = [row for row in rows[1:] if len(row) == len(rows[0])]
    for at, cell in enumerate(rows[0]):
        values = Counter(row[at] for row in others)
        if cell in values and len(values) <= max(len(others) / 2, 2):
            return True
    return False


def _fitted(path: Path, row: tuple[str, ...], width: int, line: int) -> tuple[str | None, ...]:
    if len(row) > width:
        raise EngineError(f"{path}, line {line:,} has {len(row)} cells and the first row {width}: put quotes around text with separators")
    return tuple(cell if cell.strip() else None for cell in (*row, *[""] * (width - len(row))))


def _json(path: Path, text: str) -> Table:
    lines: list[int] = []
    found: list[Mapping[str, Any]] = []
    for line, value in _values(path, text):
        if not isinstance(value, dict):
            raise EngineError(f'{path}, line {line:,} is no JSON object: write each row as {{"text": …, "label": …}}')
        lines.append(line)
        found.append(value)
    columns = tuple(dict.fromkeys(str(key) for row in found for key in row))
    return Table(path, columns, tuple(tuple(row.get(key) for key in columns) for row in found), tuple(lines))


def _values(path: Path, text: str) -> Iterator[tuple[int, Any]]:
    whole = path.suffix.lower() == ".json" and text.lstrip().startswith("[")
    for number, line in enumerate([text] if whole else text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
            check_depth(value)
        except (ValueError, RecursionError) as error:
            raise EngineError(
                f"{path}, line {number:,} cannot be read as JSON ({plain(str(error))[:80]}): write one object a line"
            ) from error
        if whole:
            yield from enumerate(value, 1)
        else:
            yield number, value


def _parquet(path: Path) -> Table:
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise EngineError(f"{path} is parquet, which needs pyarrow: install it, or write the file as CSV or JSON lines") from error
    try:
        read = parquet.read_table(path)
    except Exception as error:
        raise EngineError(f"{path} cannot be read as parquet ({plain(str(error))[:80]}): copy or download it again") from error
    columns = tuple(map(str, read.column_names))
    cells = tuple(zip(*(read.column(i).to_pylist() for i in range(len(columns))), strict=True))
    return Table(path, columns, cells, tuple(range(1, len(cells) + 1)))


TEXTS = ("text", "sentence", "content", "document", "review", "comment", "tweet", "body", "utterance")
LABELS = ("label", "labels", "class", "category", "target", "sentiment", "intent")
PAIRS = (
    ("sentence1", "sentence2"), ("premise", "hypothesis"), ("question1", "question2"), ("text1", "text2"), ("text_a", "text_b"),
    ("question", "sentence"), ("question", "answer"), ("query", "passage"), ("query", "document"), ("source", "target"),
)  # fmt: skip
SCORES = ("score", "similarity", "similarity_score", "stars", "relatedness")
SOURCES = (
    ("source", "target"), ("input", "output"), ("src", "tgt"), ("document", "summary"), ("article", "highlights"), ("text", "summary"),
    ("prompt", "response"),
)  # fmt: skip
NAMES = frozenset((*TEXTS, *LABELS, *SCORES, *(name for pair in (*PAIRS, *SOURCES) for name in pair)))


def named(columns: Sequence[str], known: Sequence[str]) -> str | None:
    """The first of ``known`` that a column is called, whatever its case."""
    lower = {name.lower(): name for name in reversed(columns)}
    return next((lower[name] for name in known if name in lower), None)
