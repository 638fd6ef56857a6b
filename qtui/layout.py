"""How a table is laid out in a given width: prose that does not fit stands below its row instead of in a narrow column."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

GAP = 2
INDENT = 2
_NUMBER = re.compile(r"[-+]?[\d.,]+(e[-+]?\d+)?\s?(%|dB|[mµ]?s|[kM]?B|MiB|GiB|[x×])?", re.ASCII | re.IGNORECASE)
_EMPTY = {"", "-", "–", "—"}
_PROSE = 16
_WRAPPED = 28  # A column of prose narrower than this reads worse than a line of its own.
_LINES = 2


@dataclass(frozen=True)
class Layout:
    """``beside`` are the columns of the table proper with their widths, ``below`` those that follow under each row (a
    column without any content is left out where width is scarce);
    ``fits`` is False where even so the table is too wide and its cells have to wrap anywhere."""

    beside: dict[int, int]
    below: tuple[int, ...]
    right: frozenset[int]
    fits: bool


def arrange(columns: Sequence[str], rows: Sequence[Sequence[str]], width: int) -> Layout:
    """Choose the layout for ``width`` terminal cells. The first column never leaves its place."""
    from rich.cells import cell_len

    wide = {i: max([cell_len(title), *(cell_len(row[i]) for row in rows)]) for i, title in enumerate(columns)}
    right = frozenset(i for i in wide if _numeric([row[i] for row in rows]))
    full = INDENT + sum(wide.values()) + GAP * (len(wide) - 1)
    beside = {i: size for i, size in wide.items() if full <= width or i == 0 or any(row[i].strip() for row in rows)}
    below: list[int] = []
    prose = [i for i in list(wide)[1:] if wide[i] > _PROSE and any(" " in row[i].strip() for row in rows)]
    names = [i for i in list(wide)[1:] if i not in prose and i not in right]
    for i in [*sorted(prose, key=lambda i: -wide[i]), *sorted(names, key=lambda i: -wide[i])]:
        if i not in beside:
            continue
        excess = INDENT + sum(beside.values()) + GAP * (len(beside) - 1) - width
        if excess > 0 and i in prose and not below and beside[i] - excess >= max(_WRAPPED, wide[i] / _LINES):
            beside[i] -= excess
        elif excess > 0:
            del beside[i]
            below.append(i)
    fits = INDENT + sum(beside.values()) + GAP * (len(beside) - 1) <= width
    return Layout(beside, tuple(sorted(below)), right & beside.keys(), fits)


def _numeric(cells: Sequence[str]) -> bool:
    filled = [cell.strip() for cell in cells if cell.strip() not in _EMPTY]
    return bool(filled) and all(_NUMBER.fullmatch(cell) for cell in filled)
