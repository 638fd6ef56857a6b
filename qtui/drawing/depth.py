"""Noise along the depth of a model: what each layer adds as bars, what has gathered up to it as a line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from qtui.drawing.braille import Canvas
from qtui.drawing.scales import Scale, spanning, usable
from qtui.drawing.sheet import Sheet, note
from qtui.drawing.spans import Line
from qtui.drawing.text import cells, middle

_EIGHTHS = " ▁▂▃▄▅▆▇█"
_LEAST_ROOM = 12
_CURSOR = "▲"


@dataclass(frozen=True)
class Place:
    """A layer where it stands in the model. ``own`` is the SQNR in dB of what it adds alone, ``whole`` that of all up to it; None
    where it adds nothing, or where that is not known. ``role`` colours its bar."""

    label: str
    own: float | None
    whole: float | None
    role: str = "bar"


def depth_chart(places: Sequence[Place], width: int, height: int, *, cursor: int | None = None, empty: str = "") -> list[Line]:
    """The chart in exactly ``width`` by ``height`` cells: noise goes up, so that the top is the lowest SQNR. The last row says which
    layer the ``cursor`` is on. Where there are more layers than columns, a column shows the worst of its own."""
    # Noise in dB: what is above is worse.
    noise = [-value for place in places for value in (place.own, place.whole) if value is not None and usable(value)]
    scale = spanning(noise)
    rows = height - 1
    if scale is None or rows < 2:
        return note(empty, width, height)
    scale = _widened(scale)
    sheet = Sheet(width, height)
    ends = [f"{-scale.high:.0f} dB", f"{-scale.low:.0f} dB"]
    left = max(map(cells, ends)) + 1
    if width - left < _LEAST_ROOM:
        left = 0
    else:
        sheet.put(left - 1 - cells(ends[0]), 0, ends[0], "axis")
        sheet.put(left - 1 - cells(ends[1]), rows - 1, ends[1], "axis")
    room = width - left
    for x, share, role in _bars(places, scale, room):
        _bar(sheet, left + x, rows, share, role)
    for x, y, char, role in _line(places, scale, room, rows).drawn():
        sheet.put(left + x, y, char, role)
    if cursor is not None and 0 <= cursor < len(places):
        _under(sheet, left, room, places, cursor)
    return sheet.lines()


def _widened(scale: Scale) -> Scale:
    """With a little below, so that the quietest layer has a bar too."""
    span = max(scale.high - scale.low, 6.0)
    return Scale(scale.high - span * 1.1, scale.high)


def _columns(count: int, room: int, index: int) -> tuple[int, int]:
    """The columns of a layer: the first of them, and the one after its last."""
    first = index * room // count
    return first, max((index + 1) * room // count, first + 1)


def _bars(places: Sequence[Place], scale: Scale, room: int) -> list[tuple[int, float, str]]:
    """Column, height (0..1) and role of each bar."""
    found: dict[int, tuple[float, str]] = {}
    for index, place in enumerate(places):
        if place.own is None or not usable(place.own):
            continue
        first, after = _columns(len(places), room, index)
        share = scale.share(-place.own)
        # A gap of one column between bars that have room for it.
        for x in range(first, max(after - 1, first + 1)):
            if x not in found or found[x][0] < share:
                found[x] = (share, place.role)
    return [(x, share, role) for x, (share, role) in found.items()]


def _bar(sheet: Sheet, x: int, rows: int, share: float, role: str) -> None:
    eighths = max(round(min(max(share, 0.0), 1.0) * rows * 8), 1)
    for row in range(rows):
        part = min(eighths - 8 * row, 8)
        if part > 0:
            sheet.put(x, rows - 1 - row, _EIGHTHS[part], role)


def _line(places: Sequence[Place], scale: Scale, room: int, rows: int) -> Canvas:
    canvas, before = Canvas(room, rows), None
    for index, place in enumerate(places):
        if place.whole is None or not usable(place.whole):
            continue
        first, after = _columns(len(places), room, index)
        at = (first + after - 1, rows * 4 - 1 - scale.place(-place.whole, rows * 4))
        canvas.line(*(before or at), *at, "line")
        before = at
    return canvas


def _under(sheet: Sheet, left: int, room: int, places: Sequence[Place], cursor: int) -> None:
    y, place = sheet.height - 1, places[cursor]
    first, after = _columns(len(places), room, cursor)
    x = left + (first + after - 1) // 2
    said = ((place.own, "alone"), (place.whole, "so far"))
    figures = [f"{value:.1f} dB {what}" for value, what in said if value is not None and usable(value)]
    # On the side of the mark that has more room; what does not fit there is left out.
    before, behind = x - 1 - left, left + room - x - 2
    wide = max(before, behind)
    texts = ["  ".join([place.label, *figures[:count]]) for count in range(len(figures), -1, -1)]
    text = next((text for text in texts if cells(text) <= wide), middle(place.label, wide))
    sheet.put(x + 2 if behind >= before else x - 1 - cells(text), y, text, "dim")
    sheet.put(x, y, _CURSOR, "accent")
