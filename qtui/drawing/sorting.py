"""The rows of a table by one of its columns."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from qtui.drawing.rows import Column, Row, cell_at, text_of

DOWN, UP = " ▾", " ▴"
_NUMBER = re.compile(r"[~<>≈]?\s*([+\-−]?\d[\d,]*\.?\d*(?:e[+-]?\d+)?)")


@dataclass(frozen=True)
class Order:
    """By the column of that key, the largest first or last."""

    column: str
    descending: bool = True


def number_in(text: str) -> float | None:
    """The number that a cell begins with, as ``~3.83`` or ``97.2 ±0.7``; None where it begins with another word."""
    found = _NUMBER.match(text.strip())
    return float(found.group(1).replace(",", "").replace("−", "-")) if found else None


def is_flat(rows: Sequence[Row]) -> bool:
    """Whether the order of the rows is free: those of a tree stand beneath one another."""
    return len(rows) > 1 and all(row.selectable and not row.indent for row in rows)


def ordered(columns: Sequence[Column], rows: Sequence[Row], order: Order) -> tuple[Row, ...]:
    """The rows by a column: numbers by value, words by letter, cells without anything last. Equal ones stay as they were."""
    index = next((place for place, column in enumerate(columns) if column.key == order.column), None)
    if index is None or not is_flat(rows):
        return tuple(rows)
    texts = {row.key: text_of(cell_at(row, index)).strip() for row in rows}
    said = [row for row in rows if texts[row.key] not in ("", "–", "?")]
    rest = [row for row in rows if texts[row.key] in ("", "–", "?")]

    def value(row: Row) -> tuple[float, str]:
        found = number_in(texts[row.key])
        return (-math.inf if found is None else found, texts[row.key].lower())

    return (*sorted(said, key=value, reverse=order.descending), *rest)


def titled(columns: Sequence[Column], order: Order) -> tuple[Column, ...]:
    """The columns with a mark at the one that the rows are ordered by."""
    mark = DOWN if order.descending else UP
    return tuple(replace(column, title=f"{column.title}{mark}") if column.key == order.column else column for column in columns)


def next_order(columns: Sequence[Column], order: Order | None) -> Order | None:
    """The next column, its largest first; after the last none, which is the table's own order."""
    keys = [column.key for column in columns]
    at = keys.index(order.column) + 1 if order is not None and order.column in keys else 0
    return Order(keys[at]) if at < len(keys) else None
