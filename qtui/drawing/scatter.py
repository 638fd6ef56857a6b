"""Points by cost and value, and those among them that no other beats in both."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import pairwise

from qtui.drawing.braille import Canvas
from qtui.drawing.numbers import telling
from qtui.drawing.scales import Scale, spanning, usable
from qtui.drawing.sheet import Sheet, note
from qtui.drawing.spans import Line
from qtui.drawing.text import cells, middle

Format = Callable[[float], str]

_LABEL = 18
_NARROWEST = 8
_SPAN = 0.05


@dataclass(frozen=True)
class Point:
    """``x`` is what it costs (less is better), ``y`` what it is worth (more is better). Without a marker of its own it is
    ``●`` where no other point beats it, ``○`` elsewhere."""

    x: float
    y: float
    label: str = ""
    role: str = ""
    marker: str = ""


@dataclass(frozen=True)
class _Spot:
    x: int
    y: int
    point: Point
    best: bool


def pareto(points: Iterable[Point]) -> tuple[Point, ...]:
    """The points that no other beats, by x: none is at most as large in x and at least as large in y, and better in one."""
    best: list[Point] = []
    for point in sorted((p for p in points if usable(p.x) and usable(p.y)), key=lambda p: (p.x, -p.y)):
        if not best or point.y > best[-1].y or (point.x, point.y) == (best[-1].x, best[-1].y):
            best.append(point)
    return tuple(best)


def scatter(
    points: Iterable[Point],
    width: int,
    height: int,
    *,
    x_label: str = "",
    x_format: Format | None = None,
    y_format: Format | None = None,
    empty: str = "nothing to compare yet",
) -> list[Line]:
    """The points in exactly ``width`` by ``height`` cells. Those not beaten have the role ``accent`` and are joined by a
    stepped line. A label that would cover another or a point is left out, those of the best points last."""
    drawn = [point for point in points if usable(point.x) and usable(point.y)]
    across, up = spanning(point.x for point in drawn), spanning(point.y for point in drawn)
    if across is None or up is None or width < 1 or height < 1:
        return note(empty, width, height)
    across = _widened(across)
    sheet = Sheet(width, height)
    rows = height - 1 if height >= 3 else height
    ys = [up.high] if up.constant else [up.high, up.low]
    texts = tuple(y_format(y) for y in ys) if y_format else telling(*ys)
    left = max(cells(text) for text in texts) + 2
    if width - left < _NARROWEST:
        left = 0
    room = width - left
    for y, text in zip(ys, texts, strict=True):
        if left:
            sheet.put(left - 2 - cells(text), rows - 1 - up.place(y, rows), text, "axis")
    best = pareto(drawn)
    spots = [_spot(point, point in best, across, up, left, room, rows) for point in drawn]
    spots.sort(key=lambda spot: spot.best)
    _steps(sheet, [spot for spot in spots if spot.best], rows)
    for spot in spots:
        sheet.put(spot.x, spot.y, spot.point.marker or ("●" if spot.best else "○"), _role(spot))
    _labels(sheet, spots, left, rows)
    if rows < height:
        _x_axis(sheet, left, across, x_label, x_format)
    return sheet.lines()


def _widened(scale: Scale) -> Scale:
    """At least a twentieth of what it holds: two times that are the same but for noise do not lie a whole chart apart."""
    lacking = _SPAN * max(abs(scale.low), abs(scale.high)) - (scale.high - scale.low)
    if scale.constant or lacking <= 0:
        return scale
    return Scale(scale.low - lacking / 2, scale.high + lacking / 2)


def _spot(point: Point, best: bool, across: Scale, up: Scale, left: int, room: int, rows: int) -> _Spot:
    return _Spot(left + across.place(point.x, room), rows - 1 - up.place(point.y, rows), point, best)


def _role(spot: _Spot) -> str:
    return "accent" if spot.best else spot.point.role


def _steps(sheet: Sheet, best: list[_Spot], rows: int) -> None:
    canvas = Canvas(sheet.width, rows)
    ordered = sorted(best, key=lambda spot: (spot.x, -spot.y))
    for a, b in pairwise(ordered):
        canvas.line(2 * a.x, 4 * a.y + 1, 2 * b.x, 4 * a.y + 1)
        canvas.line(2 * b.x, 4 * a.y + 1, 2 * b.x, 4 * b.y + 1)
    for x, y, char, _ in canvas.drawn():
        sheet.put(x, y, char, "front")


def _labels(sheet: Sheet, spots: list[_Spot], left: int, rows: int) -> None:
    for spot in reversed(spots):
        text = middle(spot.point.label, _LABEL)
        size = cells(text)
        centred = min(max(spot.x - size // 2, left), sheet.width - size)
        places = ((spot.x + 2, spot.y), (spot.x - size - 1, spot.y), (centred, spot.y + 1), (centred, spot.y - 1))
        for x, y in places if text else ():
            before, after = max(x - 1, 0), min(x + size + 1, sheet.width)
            # The marker itself stands one cell further away, on either side.
            if x >= left and y < rows and x + size <= sheet.width and sheet.free(before, y, after - before):
                sheet.put(x, y, text, _role(spot))
                break


def _x_axis(sheet: Sheet, left: int, across: Scale, label: str, x_format: Format | None) -> None:
    y, room = sheet.height - 1, sheet.width - left
    xs = [across.low] if across.constant else [across.low, across.high]
    texts = [x_format(x) for x in xs] if x_format else list(telling(*xs))
    if across.constant:
        sheet.put(left + (room - cells(texts[0])) // 2, y, texts[0], "axis")
        return
    first, last = texts
    if cells(first) + cells(last) < room:
        sheet.put(left, y, first, "axis")
    sheet.put(sheet.width - cells(last), y, last, "axis")
    x = left + (room - cells(label)) // 2
    if sheet.free(x - 1, y, cells(label) + 2):
        sheet.put(x, y, label, "dim")
