"""Markdown tables."""

from __future__ import annotations

import math
from collections.abc import Sequence


def table(header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Lines of a Markdown table."""
    return [_line(header), _line(("---",) * len(header)), *(_line(row) for row in rows)]


def number(value: float | None, form: str) -> str:
    """``value`` in that form; empty where there is none, or none that is finite."""
    return "" if value is None or not math.isfinite(value) else form.format(value)


def _line(cells: tuple[str, ...]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
