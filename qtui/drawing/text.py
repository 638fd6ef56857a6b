"""Text in a given number of terminal cells."""

from __future__ import annotations

from functools import lru_cache
from typing import Literal

from rich.cells import cell_len

from engine.plain_text import plain

Align = Literal["left", "right"]
Cut = Literal["middle", "end"]


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
    """``text`` cut in the middle to at most ``width`` cells: ``layer1.0…conv2``."""
    if cells(text) <= width:
        return text
    if width < 2:
        return "…"[: max(width, 0)]
    tail = (width - 1) // 2
    head = width - 1 - tail
    return f"{_head(text, head).rstrip('.')}…{_head(text[::-1], tail)[::-1].lstrip('.')}"


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
