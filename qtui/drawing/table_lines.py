"""The lines of a table: its header, a row, the message where there is none."""

from __future__ import annotations

import textwrap

from qtui.drawing.bars import bar
from qtui.drawing.columns import Place, Plan
from qtui.drawing.rows import INDENT, Cell, Column, Row, cell_at, text_of
from qtui.drawing.spans import Line, Span, merged
from qtui.drawing.text import cells, fit, safe

CURSOR = "▌"
MARK = "*"


def header(plan: Plan, columns: tuple[Column, ...]) -> Line:
    """The titles over their columns; ``‹`` and ``›`` say that more columns are that way."""
    text = " " * plan.left
    for place in plan.places:
        column = columns[place.index]
        text = text.ljust(place.x) if text.isascii() else text + " " * (place.x - cells(text))
        text += fit(safe(column.title), place.width, column.align)
    text = fit(text, plan.width)
    if plan.earlier and text.startswith(" "):
        text = "‹" + text[1:]
    # A plan leaves the last cell free.
    if plan.later and text.endswith(" "):
        text = text[:-1] + "›"
    return [(text, "header")]


def row_line(plan: Plan, columns: tuple[Column, ...], row: Row, *, cursor: bool = False) -> Line:
    """A row in exactly ``plan.width`` cells."""
    spans: list[Span] = [(CURSOR if cursor else " ", "pointer" if cursor else "")]
    if plan.marks:
        spans.append((f"{MARK} " if row.marked else "  ", "marked" if row.marked else row.role))
    if plan.glyph:
        spans.append((fit(safe(row.glyph), plan.glyph) + " ", row.role))
    x = plan.left
    for place in plan.places:
        spans.append((" " * (place.x - x), row.role))
        spans += _cell(place, columns[place.index], row)
        x = place.x + place.width
    return clipped(spans, plan.width, row.role)


def clipped(spans: list[Span], width: int, role: str = "") -> Line:
    """``spans`` in exactly ``width`` cells: cut at the end or padded with ``role``."""
    line: list[Span] = []
    left = width
    for text, own in spans:
        kept = text if cells(text) <= left else fit(text, left)
        line.append((kept, own))
        left -= cells(kept)
    return merged([*line, (" " * left, role)])


def message(text: str, width: int, height: int) -> list[Line]:
    """``text`` in the middle of ``width`` by ``height`` cells, dim."""
    inner = max(width - 4, 1)
    found = [line for part in text.splitlines() for line in textwrap.wrap(safe(part), inner) or [""]][:height]
    top = (height - len(found)) // 2
    lines: list[Line] = []
    for y in range(height):
        part = found[y - top] if top <= y < top + len(found) else ""
        before = max(width - cells(part), 0) // 2
        lines.append([(fit(" " * before + part, width), "dim")] if width > 0 else [])
    return lines


def _cell(place: Place, column: Column, row: Row) -> list[Span]:
    cell = cell_at(row, place.index)
    role = (cell.role if isinstance(cell, Cell) else "") or row.role
    text = text_of(cell)
    indent = min(row.indent * INDENT, max(place.width - 4, 0)) if place.index == 0 else 0
    width = place.width - indent
    before: list[Span] = [(" " * indent, role)]
    if isinstance(cell, Cell) and cell.bar is not None:
        length = width - place.beside_bar - 1
        if length >= 1:
            return [*before, (bar(cell.bar, length) + " ", "bar"), (fit(text, place.beside_bar, "right"), role)]
    return [*before, (fit(text, width, column.align, column.cut), role)]
