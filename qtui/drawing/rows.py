"""What a table shows: columns, rows, cells."""

from __future__ import annotations

from dataclasses import dataclass

from qtui.drawing.text import Align, Cut, cells, safe

BAR = 5
"""Cells a share bar takes where the width of its column is free."""

INDENT = 2
"""Cells one level of indentation takes."""


@dataclass(frozen=True)
class Column:
    """One column. ``width`` None takes what its cells need. ``min`` is how narrow it may be cut before columns are dropped
    (0: not at all, or 8 cells when it grows). ``grow`` is its portion of the space left over. The lowest ``priority`` is
    dropped first, the rightmost of equals; the last column left always stays."""

    key: str
    title: str
    width: int | None = None
    min: int = 0
    grow: int = 0
    align: Align = "left"
    cut: Cut = "middle"
    priority: int = 0


@dataclass(frozen=True)
class Cell:
    """Text with a role of its own; ``bar`` (0 to 1) draws a share bar before the text."""

    text: str
    role: str = ""
    bar: float | None = None


@dataclass(frozen=True)
class Row:
    """One row. ``key`` is unique in the table. ``indent`` counts levels and moves the first column. ``glyph`` stands in a
    column of its own before the first. A row that is not ``selectable`` is passed over by the cursor."""

    key: str
    cells: tuple[str | Cell, ...]
    role: str = ""
    indent: int = 0
    marked: bool = False
    glyph: str = ""
    selectable: bool = True


def text_of(cell: str | Cell) -> str:
    """The text of a cell, fit for a terminal."""
    return safe(cell.text if isinstance(cell, Cell) else cell)


def cell_at(row: Row, index: int) -> str | Cell:
    """A cell of a row; a row may have fewer cells than the table has columns."""
    return row.cells[index] if index < len(row.cells) else ""


@dataclass(frozen=True)
class Measure:
    """What the content of a column needs: all of it, and the text beside its bars (0 without bars)."""

    full: int
    beside_bar: int = 0

    def wider(self, other: Measure) -> Measure:
        return Measure(max(self.full, other.full), max(self.beside_bar, other.beside_bar))


def measure(columns: tuple[Column, ...], rows: tuple[Row, ...]) -> tuple[Measure, ...]:
    """What each column needs for its title and all its cells."""
    return tuple(_measure(column, index, rows) for index, column in enumerate(columns))


def _measure(column: Column, index: int, rows: tuple[Row, ...]) -> Measure:
    title = cells(safe(column.title))
    if column.width is not None and not any(isinstance(cell, Cell) and cell.bar is not None for cell in _cells(rows, index)):
        return Measure(column.width)
    full, beside = title, 0
    for row in rows:
        cell = cell_at(row, index)
        needed = cells(text_of(cell))
        if isinstance(cell, Cell) and cell.bar is not None:
            beside = max(beside, needed)
            needed += BAR + 1
        if index == 0:
            needed += row.indent * INDENT
        full = max(full, needed)
    if beside:
        full = max(full, beside + BAR + 1)
    return Measure(full if column.width is None else column.width, beside)


def _cells(rows: tuple[Row, ...], index: int) -> list[str | Cell]:
    return [row.cells[index] for row in rows if index < len(row.cells)]
