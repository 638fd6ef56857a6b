"""Small pictures beside each other, each below its name, in half-block characters."""

from __future__ import annotations

import os
from collections.abc import Sequence

from rich.color import Color
from rich.segment import Segment
from rich.style import Style
from textual.strip import Strip
from textual.widget import Widget

from qtui.drawing.text import end
from qtui.pixels import Pixels, cells, fitted, shades
from qtui.terminal import depth

_GAP = 2


class Thumbnails(Widget):
    """``show`` takes (name, picture) from left to right, and words that stand below or in their place."""

    DEFAULT_CSS = "Thumbnails { width: 1fr; height: 1fr; }"

    def __init__(self, id: str | None = None) -> None:
        super().__init__(id=id)
        self._pictures: tuple[tuple[str, Pixels], ...] = ()
        self._words: tuple[str, ...] = ()
        self._strips: list[Strip] = []

    def show(self, pictures: Sequence[tuple[str, Pixels]], words: Sequence[str] = ()) -> None:
        if (tuple(pictures), tuple(words)) != (self._pictures, self._words):
            self._pictures, self._words = tuple(pictures), tuple(words)
            self._paint()

    def on_resize(self) -> None:
        self._paint()

    def _paint(self) -> None:
        width, height = self.content_size
        self._strips = []
        if width > 0 and height > 0:
            self._strips = [*self._drawn(width, height), *(Strip([Segment(end(word, width))]) for word in self._words)]
        self.refresh()

    def _drawn(self, width: int, height: int) -> list[Strip]:
        count = len(self._pictures)
        each = (width - _GAP * (count - 1)) // count if count else 0
        named = any(name for name, _ in self._pictures)
        room = height - len(self._words) - named
        if each < 2 or room < 1:
            return []
        columns = [_column(fitted(found, each, room)) for _, found in self._pictures]
        widths = [max(fitted(found, each, room).width, len(name)) for name, found in self._pictures]
        lines = [Strip(_joined([[Segment(name)] for name, _ in self._pictures], widths))] if named else []
        for y in range(max(map(len, columns), default=0)):
            lines.append(Strip(_joined([column[y] if y < len(column) else [] for column in columns], widths)))
        return lines

    def render_line(self, y: int) -> Strip:
        width, style = self.content_size.width, self.visual_style.rich_style
        found = self._strips[y] if y < len(self._strips) else Strip([])
        return found.apply_style(style).adjust_cell_length(width, style)


def _joined(parts: Sequence[list[Segment]], widths: Sequence[int]) -> list[Segment]:
    found: list[Segment] = []
    for part, width in zip(parts, widths, strict=True):
        used = sum(segment.cell_length for segment in part)
        found += [*part, Segment(" " * (width - used + _GAP))]
    return found


def _column(found: Pixels) -> list[list[Segment]]:
    if depth(os.environ) == "16":
        return [[Segment(line)] for line in shades(found)]
    return [[Segment("▀", Style(color=_rgb(above), bgcolor=_rgb(below))) for above, below in row] for row in cells(found)]


def _rgb(colour: tuple[int, int, int]) -> Color:
    return Color.from_rgb(*colour)
