"""Tables in CSV as anybody may have written them: read whole, each fault told with its line."""

from __future__ import annotations

import codecs
import csv
import io
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from engine.data.items import SplitName
from engine.data.splits import NAMES
from engine.errors import EngineError
from engine.plain_text import one_line
from engine.reading import MB, read_bytes, separator_of, told_separator

_LIMIT, _FIELD = 1024 * MB, 131_072
_DELIMITERS = ",;\t|"
_MARKS = {codecs.BOM_UTF32_LE: "UTF-32", codecs.BOM_UTF32_BE: "UTF-32", codecs.BOM_UTF16_LE: "UTF-16", codecs.BOM_UTF16_BE: "UTF-16"}
_LARGEST = float(np.finfo(np.float32).max)
# The column that names the split of a row.
_SPLIT = "split"


@dataclass(frozen=True)
class Table:
    """A table with a header: ``rows`` have a cell for each of ``columns``, ``lines`` are where they begin in the file."""

    path: Path
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    lines: tuple[int, ...]

    def where(self, row: int, column: int | None = None) -> str:
        """``FILE, line 3, column 'x'``, for a message."""
        named = "" if column is None else f", column {one_line(repr(self.columns[column]), 60)}"
        return f"{self.path}, line {self.lines[row]}{named}"

    def without(self, column: int) -> Table:
        """The table without a column."""
        columns = self.columns[:column] + self.columns[column + 1 :]
        return Table(self.path, columns, tuple(row[:column] + row[column + 1 :] for row in self.rows), self.lines)

    def only(self, rows: Sequence[int]) -> Table:
        """The table with some of its rows."""
        return Table(self.path, self.columns, tuple(self.rows[i] for i in rows), tuple(self.lines[i] for i in rows))

    def numbers(self, columns: Sequence[int]) -> npt.NDArray[np.float64]:
        """The numbers of some columns, (rows, columns). Raises EngineError for a cell that is empty or no finite number."""
        found = np.empty((len(self.rows), len(columns)))
        for row, cells in enumerate(self.rows):
            for place, column in enumerate(columns):
                found[row, place] = self._number(row, column, cells[column])
        return found

    def _number(self, row: int, column: int, cell: str) -> float:
        text = cell.strip()
        if not text:
            raise EngineError(f"{self.where(row, column)} is empty: fill it in, or take the line out")
        try:
            # Python reads 1_5 as 15.
            number = math.nan if "_" in text else float(text)
        except ValueError:
            number = math.nan
        if not abs(number) <= _LARGEST:
            raise EngineError(f"{self.where(row, column)} is {_shown(text)}, no finite number: correct it, or take the line out")
        return number


def read_tables(place: Path) -> dict[SplitName, Table]:
    """The tables of the splits that there are at ``place``: a CSV file, which may have a column ``split``, or a folder with one, or with
    train.csv and others. Raises EngineError, with the line, for what cannot be read."""
    if place.is_dir():
        files = {path.stem.lower(): path for path in sorted(place.iterdir()) if path.suffix.lower() in (".csv", ".tsv")}
        given = {split: next((files[name] for name in names if name in files), None) for split, names in NAMES.items()}
        if given["train"]:
            tables = {split: read_table(path) for split, path in given.items() if path}
            _check_alike(tables)
            return tables
        if len(files) != 1:
            what = f"{len(files)} CSV files and no train.csv" if files else "no CSV file"
            raise EngineError(f"{place} holds {what}: give the file, or a folder with train.csv and, if there are, val.csv and test.csv")
        place = next(iter(files.values()))
    return _by_split(read_table(place))


def _check_alike(tables: Mapping[SplitName, Table]) -> None:
    first = tables["train"]
    for table in tables.values():
        if table.columns != first.columns:
            raise EngineError(f"{table.path} has other columns than {first.path}: give both the same, in one order")


def _by_split(table: Table) -> dict[SplitName, Table]:
    place = next((i for i, name in enumerate(table.columns) if name.lower() == _SPLIT), None)
    if place is None:
        return {"train": table}
    rows: dict[SplitName, list[int]] = {}
    known: dict[str, SplitName] = {name: split for split, names in NAMES.items() for name in names}
    for row, cells in enumerate(table.rows):
        name = cells[place].strip().lower()
        if name not in known:
            raise EngineError(f"{table.where(row, place)} is {_shown(cells[place])}: say train, val or test")
        rows.setdefault(known[name], []).append(row)
    rest = table.without(place)
    return {split: rest.only(some) for split, some in rows.items()}


def read_table(path: Path) -> Table:
    """A CSV file in UTF-8 with a header, separated by commas, semicolons, tabs or bars. Raises EngineError in one line."""
    text = _text(path)
    told, text = told_separator(text)
    first = next((line for line in text.splitlines() if line.strip()), "")
    if not first:
        raise EngineError(f"{path} is empty: give a table with a header")
    delimiter = told or separator_of(first, _DELIMITERS)
    rows = list(_rows(path, text, delimiter))
    columns = tuple(cell.strip() for cell in rows[0][1])
    twice = next((name for name, count in Counter(columns).items() if count > 1 or not name), None)
    if twice is not None:
        fault = f"the column {one_line(repr(twice), 60)} twice" if twice else "a column without a name"
        raise EngineError(f"{path}, line {rows[0][0]} has {fault}: the first line names each column once")
    if all(map(_is_number, columns)):
        raise EngineError(f"{path}, line {rows[0][0]} holds numbers alone: the first line is a header, put the columns' names there")
    for line, cells in rows[1:]:
        if len(cells) != len(columns):
            count = f"{len(cells)} cell{'s' * (len(cells) != 1)}"
            raise EngineError(f"{path}, line {line} has {count} and the header {len(columns)}: complete it, or take it out")
    if len(rows) == 1:
        raise EngineError(f"{path} has a header and no rows: give a table with some")
    return Table(path, columns, tuple(tuple(cells) for _, cells in rows[1:]), tuple(line for line, _ in rows[1:]))


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _rows(path: Path, text: str, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """The rows that are not empty, with the lines where they begin."""
    before = csv.field_size_limit(_FIELD)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    line = 1
    try:
        while True:
            line = reader.line_num + 1
            try:
                cells = next(reader)
            except StopIteration:
                return
            if any(cell.strip() for cell in cells):
                yield line, cells
    except csv.Error as error:
        raise EngineError(f"{path}, line {line} cannot be read ({one_line(error, 80)}): is a quote missing?") from error
    finally:
        csv.field_size_limit(before)


def _text(path: Path) -> str:
    try:
        content = read_bytes(path, _LIMIT)
    except OSError as error:
        raise EngineError(f"{path} cannot be read ({error.strerror or error}): check the path and its permissions") from error
    for mark, encoding in _MARKS.items():
        if content.startswith(mark):
            raise EngineError(f"{path} is in {encoding}: convert it, for example with iconv -f {encoding} -t utf-8")
    if b"\0" in content:
        raise EngineError(f"{path} is no text, it holds binary data: give a CSV file in UTF-8")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise EngineError(
            f"{path}, line {line} is not UTF-8 (byte 0x{content[error.start]:02x}): convert the file, for example with iconv -t utf-8"
        ) from error


def _shown(text: str) -> str:
    return one_line(repr(text[:60]), 60)
