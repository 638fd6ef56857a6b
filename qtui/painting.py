"""What the terminal is sent: the cells that differ from what it shows, and none while it has not taken the last ones."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from itertools import groupby
from typing import TYPE_CHECKING, Any

from rich.cells import get_character_cell_size
from rich.color import Color, ColorSystem
from rich.console import Console
from rich.control import Control
from rich.segment import Segment
from rich.style import Style
from textual._compositor import ChopsUpdate, CompositorUpdate, LayoutUpdate
from textual.events import Resize
from textual.strip import Strip
from textual.widget import Widget

if TYPE_CHECKING:
    from textual.screen import Screen

    _Base = Screen[Any]
else:
    _Base = object

_APART = 6
"""Cells that are alike between two that differ: up to so many cost less to send again than to be passed over."""
_AGAIN = 0.02
Cell = tuple[str, Style | None]
_Codes = tuple[str, str, str]
"""What makes a style: its attributes, its colour, that of its ground."""
_AFTER_WIDE: Cell = ("", None)


class _Pen:
    """Text in its styles, with the codes that change from one piece to the next alone; ``end`` takes all of them back."""

    end = "\x1b[0m"

    def __init__(self, system: ColorSystem | None) -> None:
        self._system = system
        self._now: _Codes = ("", "39", "49")

    def written(self, strip: Strip) -> str:
        return "".join(self._codes(style) + text for text, style, _ in strip)

    def _codes(self, style: Style | None) -> str:
        was, self._now = self._now, _codes_of(style, self._system)
        changed = [code for code, before in zip(self._now, was, strict=True) if code != before]
        if was[0] and self._now[0] != was[0]:
            # Bold and its like are taken back with everything else.
            changed = ["0", *(code for code, default in zip(self._now, ("", "39", "49"), strict=True) if code != default)]
        return f"\x1b[{';'.join(changed)}m" if changed else ""


@lru_cache(4096)
def _codes_of(style: Style | None, system: ColorSystem | None) -> _Codes:
    if style is None or system is None:
        return "", "39", "49"
    fore, back = (_colour(colour, system, ground) for colour, ground in ((style.color, True), (style.bgcolor, False)))
    return style.without_color._make_ansi_codes(system), fore, back


def _colour(colour: Color | None, system: ColorSystem, foreground: bool) -> str:
    if colour is None or colour.is_default:
        return "39" if foreground else "49"
    return ";".join(colour.downgrade(system).get_ansi_codes(foreground))


class Changes(CompositorUpdate):
    """Runs of cells to be painted: (x, y, strip)."""

    def __init__(self, runs: list[tuple[int, int, Strip]]) -> None:
        self.runs = runs

    def render_segments(self, console: Console) -> str:
        pen = _Pen(console._color_system)
        return "".join(f"{Control.move_to(x, y).segment.text}{pen.written(strip)}" for x, y, strip in self.runs) + pen.end


class Canvas:
    """What the terminal shows, as far as it was told."""

    def __init__(self) -> None:
        self._lines: dict[int, list[Cell]] = {}

    def forget(self) -> None:
        """The terminal may show anything: everything is painted anew."""
        self._lines.clear()

    def changed(self, update: CompositorUpdate) -> CompositorUpdate | None:
        """The part of ``update`` that the terminal does not show yet; None where it shows all of it."""
        if not isinstance(update, LayoutUpdate | ChopsUpdate):
            return update
        runs = [run for x, y, strip in _pieces(update) for run in self._differing(x, y, _cells(strip))]
        return Changes(runs) if runs else None

    def _differing(self, x: int, y: int, cells: list[Cell]) -> Iterator[tuple[int, int, Strip]]:
        line = self._lines.setdefault(y, [])
        if len(line) < x + len(cells):
            line.extend([("\0", None)] * (x + len(cells) - len(line)))
        start = last = -1
        for place, cell in enumerate(cells):
            if cell == line[x + place]:
                continue
            if start >= 0 and place - last > _APART:
                yield self._run(x, y, cells, start, last)
                start = -1
            start, last = (place if start < 0 else start), place
        if start >= 0:
            yield self._run(x, y, cells, start, last)
        line[x : x + len(cells)] = cells

    @staticmethod
    def _run(x: int, y: int, cells: list[Cell], start: int, last: int) -> tuple[int, int, Strip]:
        # Half of a wide character cannot be painted.
        while start > 0 and cells[start] == _AFTER_WIDE:
            start -= 1
        while last + 1 < len(cells) and cells[last + 1] == _AFTER_WIDE:
            last += 1
        found = (cell for cell in cells[start : last + 1] if cell[0])
        segments = [Segment("".join(char for char, _ in group), style) for style, group in groupby(found, key=lambda cell: cell[1])]
        return x + start, y, Strip(segments)


def _cells(strip: Strip) -> list[Cell]:
    found: list[Cell] = []
    for text, style, control in strip:
        if control:
            continue
        if text.isascii():
            found.extend([(char, style) for char in text])
            continue
        for char in text:
            width = get_character_cell_size(char)
            if width:
                found.append((char, style))
                found.extend([_AFTER_WIDE] * (width - 1))
            elif found:
                found[-1] = (found[-1][0] + char, found[-1][1])
    return found


def _pieces(update: LayoutUpdate | ChopsUpdate) -> Iterator[tuple[int, int, Strip]]:
    """(x, y, strip) of all that an update paints."""
    if isinstance(update, LayoutUpdate):
        for y, line in enumerate(update.strips, update.region.y):
            yield update.region.x, y, Strip.join(list(line))
        return
    for y, x1, x2 in update.spans:
        for end, (x, strip) in zip(update.chop_ends[y], update.chops[y].items(), strict=False):
            if strip is not None and x <= x2 and end > x1:
                yield x, y, strip if end <= x2 else strip.crop(0, min(end, x2) - x)


class Paced(_Base):
    """Mixed into a screen: draws no frame while the terminal has not taken the last one, and has the terminal's size in the end. What is
    to be painted adds up."""

    _behind = False

    def _compositor_refresh(self) -> None:
        if self.is_current and getattr(self.app._driver, "behind", False):
            if not self._behind:
                self._behind = True
                self.set_timer(_AGAIN, self._catch_up)
            return
        super()._compositor_refresh()

    def _catch_up(self) -> None:
        self._behind = False
        self._compositor_refresh()

    def on_resize(self, event: Resize) -> None:
        # A size from before, which came late (of the first layout, when the window changed meanwhile), would stay. To lay out for it
        # would tell of it again, ahead of the size that follows, without end.
        now = self.app.size
        if event.size != now:
            event.prevent_default()
            self.post_message(Resize(now, now))


def titles(widget: Widget, title: str | None = None, subtitle: str | None = None) -> None:
    """Set what stands in a widget's border; None leaves it. Setting it paints all of the widget: it is done where it differs."""
    shown: dict[str, str] = widget.__dict__.setdefault("_qtui_titles", {})
    for name, text in (("border_title", title), ("border_subtitle", subtitle)):
        if text is not None and text != shown.get(name, ""):
            shown[name] = text
            setattr(widget, name, text)
