"""Text in a given number of terminal cells."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Literal

from rich.cells import cell_len

from engine.plain_text import plain

Align = Literal["left", "right"]
Cut = Literal["middle", "end"]

_DOTTED = re.compile(r" *[\w\[\]*-]+(\.[\w\[\]*-]+)+", re.ASCII)
_TRAILING = re.compile(r"\d*$")


def safe(text: str) -> str:
    """``text`` on one line without anything that could steer the terminal: line breaks and tabs become spaces."""
    return text if text.isascii() and text.isprintable() else _safe(text)


@lru_cache(4096)
def _safe(text: str) -> str:
    spaced = "".join(" " if char.isspace() else char for char in text)
    return plain(spaced, "")


def cells(text: str) -> int:
    """How many terminal cells ``text`` takes; wide characters take two."""
    return len(text) if text.isascii() else cell_len(text)


def middle(text: str, width: int) -> str:
    """``text`` cut in the middle to at most ``width`` cells; a dotted name at its components: ``…3.denselayer5.conv2``."""
    if cells(text) <= width:
        return text
    if _DOTTED.fullmatch(text) and (kept := _components(text, width)):
        return kept
    if width < 2:
        return "…"[: max(width, 0)]
    tail = (width - 1) // 2
    head = width - 1 - tail
    return f"{_head(text, head).rstrip('.')}…{_head(text[::-1], tail)[::-1].lstrip('.')}"


def _components(name: str, width: int) -> str:
    """Whole components from both ends, or the last ones and the number of the one before them: what keeps most of a dotted name,
    empty where not even the last component fits."""
    lead = name[: len(name) - len(name.lstrip(" "))]
    parts, room = name.lstrip(" ").split("."), width - len(lead)
    found = ""
    for first in range(len(parts) - 1, -1, -1):
        for last in range(1, len(parts) - first):
            kept = f"{'.'.join(parts[:first])}…{'.'.join(parts[-last:])}"
            number = _TRAILING.search(parts[-last - 1])
            if not first and number is not None and number[0] and len(kept) + len(number[0]) + 1 <= room:
                kept = f"…{number[0]}.{kept[1:]}"
            if len(found) < len(kept) <= room:
                found = kept
    return f"{lead}{found}" if found else ""


def end(text: str, width: int) -> str:
    """``text`` cut at its end to at most ``width`` cells: ``a sentence th…``."""
    if cells(text) <= width:
        return text
    return f"{_head(text, width - 1).rstrip()}…" if width > 0 else ""


def fit(text: str, width: int, align: Align = "left", cut: Cut = "end") -> str:
    """``text`` cut or padded to exactly ``width`` cells."""
    kept = middle(text, width) if cut == "middle" else end(text, width)
    space = " " * (width - cells(kept))
    return space + kept if align == "right" else kept + space


def _head(text: str, width: int) -> str:
    used = 0
    for i, char in enumerate(text):
        used += cells(char)
        if used > width:
            return text[:i]
    return text
