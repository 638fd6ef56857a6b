"""Which items a quantized model answers otherwise than fp32, as Markdown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from engine.plain_text import one_line
from engine.report.markdown import table
from engine.report.measures import item_of

_LONGEST = 80


def counted(found: Mapping[str, Any], item: tuple[str, str], name: str) -> str:
    """``7 of 360 test images are answered otherwise by PTQ: 5 worse, 1 better``."""
    items, changed, worse, better = (found.get(key) or 0 for key in ("items", "changed", "worse", "better"))
    are = "is" if changed == 1 else "are"
    said = f"{changed:,} of {items:,} test {item[1]} {are} answered otherwise by {name}"
    sides = [f"{count:,} {word}" for count, word in ((worse, "worse"), (better, "better")) if count]
    return f"{said}: {', '.join(sides)}" if sides else said


def section(report: Mapping[str, Any]) -> list[str]:
    """The items whose answer changed most; empty where a task has nothing to show of single ones."""
    found = report.get("changed")
    if not isinstance(found, Mapping):
        return []
    item, name = item_of(report), str(found.get("which") or "ptq").upper()
    lines = ["## What changed most", "", f"{counted(found, item, name)}."]
    rows = [row for row in found.get("rows") or () if isinstance(row, Mapping)]
    if rows:
        cells = [(_where(row), *(one_line(row.get(key) or "", _LONGEST) for key in ("label", "fp32", "quantized"))) for row in rows]
        lines += ["", *table((item[0], "right is", "fp32", name), cells)]
    return [*lines, ""]


def _where(row: Mapping[str, Any]) -> str:
    place, file = row.get("place"), row.get("file")
    return f"{place} ({one_line(file, _LONGEST)})" if file else str(place)
