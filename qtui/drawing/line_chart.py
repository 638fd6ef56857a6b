"""Curves over steps or epochs, with base lines to compare them with."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from qtui.drawing.braille import Canvas
from qtui.drawing.numbers import compact, telling
from qtui.drawing.scales import Scale, spanning, usable
from qtui.drawing.sheet import Sheet, note
from qtui.drawing.spans import Line
from qtui.drawing.text import cells, end

Format = Callable[[float], str]
Baseline = tuple[str, float | None, str]
"""Label, value and role of a horizontal line: ``("fp32", 91.7, "base")``."""

_NARROWEST = 8  # Labels give way to a plot narrower than this.
_HALVED = 7  # From this many rows on the middle of the axis has a label too.


@dataclass(frozen=True)
class Series:
    """Points ``(x, y)`` in order of x. None, NaN and infinities leave a gap. ``label`` stands beside the last point."""

    points: Sequence[tuple[float, float | None]]
    role: str = "line"
    label: str = ""


def line_chart(
    series: Iterable[Series],
    width: int,
    height: int,
    *,
    baselines: Iterable[Baseline] = (),
    y_format: Format | None = None,
    x_label: str = "",
    x_format: Format = compact,
    x_range: tuple[float, float] | None = None,
    log: bool = False,
    empty: str = "no values yet",
) -> list[Line]:
    """The chart in exactly ``width`` by ``height`` cells. A fixed ``x_range`` keeps a curve that grows in place. With an
    ``x_label`` the last row tells the range of x. ``log`` makes y logarithmic and leaves out what is not above zero.
    Where there are more points than dots beside each other, neighbours are averaged."""
    drawn = [_thinned(one, 2 * width) for one in series]
    bases = [(label, value, role) for label, value, role in baselines if value is not None and usable(value)]
    scale = spanning([y for one in drawn for _, y in one.points if y is not None and usable(y)], log=log)
    if scale is None:
        return note(empty, width, height)
    bases = [base for base in bases if usable(base[1], log=scale.log)]
    scale = spanning([scale.low, scale.high, *(value for _, value, _ in bases)], log=scale.log) or scale
    across = Scale(*x_range) if x_range else spanning([x for one in drawn for x, _ in one.points if usable(x)])
    if across is None:
        return note(empty, width, height)
    rows = height - 1 if x_label and height >= 4 else height
    sheet = Sheet(width, height)
    at = _axis_labels(scale, bases, rows, y_format)
    left = max((cells(text) for _, text, _ in at), default=0) + 1
    right = _end_labels(drawn, bases, scale, rows, width // 3)
    margin = max((cells(text) for _, text, _ in right), default=-1) + 1
    if width - left - margin < _NARROWEST:
        right, margin = [], 0
    if width - left < _NARROWEST:
        at, left = [], 0
    room = width - left - margin
    for row, text, role in at:
        sheet.put(left - 1 - cells(text), row, text, role)
    for _, value, role in bases:
        sheet.put(left, _row(scale, value, rows), "┈" * room, role)
    for x, y, char, role in _curves(drawn, across, scale, room, rows).drawn():
        sheet.put(left + x, y, char, role)
    for row, text, role in right:
        sheet.put(left + room + 1, row, text, role)
    if rows < height:
        _x_axis(sheet, left, room, across, x_label, x_format)
    return sheet.lines()


def _thinned(series: Series, most: int) -> Series:
    if len(series.points) <= most or most < 1:
        return series
    size = -(-len(series.points) // most)
    points: list[tuple[float, float | None]] = []
    for at in range(0, len(series.points), size):
        part = [(x, y) for x, y in series.points[at : at + size] if usable(x)]
        values = [y for _, y in part if y is not None and usable(y)]
        if part:
            points.append((part[-1][0], sum(value / len(values) for value in values) if values else None))
    return replace(series, points=points)


def _row(scale: Scale, value: float, rows: int) -> int:
    return (rows * 4 - 1 - scale.place(value, rows * 4)) // 4


def _axis_labels(scale: Scale, bases: list[tuple[str, float, str]], rows: int, y_format: Format | None) -> list[tuple[int, str, str]]:
    """Base lines first: theirs is the exact value in a row."""
    wanted = [(_row(scale, value, rows), value, role) for _, value, role in bases]
    ends = [scale.high] if scale.constant else [scale.high, scale.low]
    wanted += [(_row(scale, value, rows), value, "axis") for value in ends]
    if rows >= _HALVED and not scale.constant:
        middle = scale.value(0.5)
        near = [row for row, _, _ in wanted]
        if all(abs(_row(scale, middle, rows) - row) > 1 for row in near):
            wanted.append((_row(scale, middle, rows), middle, "axis"))
    kept: dict[int, tuple[float, str]] = {}
    for row, value, role in wanted:
        kept.setdefault(row, (value, role))
    values = [value for value, _ in kept.values()]
    texts = tuple(y_format(value) for value in values) if y_format else telling(*values)
    return [(row, text, role) for (row, (_, role)), text in zip(kept.items(), texts, strict=True)]


def _end_labels(
    series: list[Series], bases: list[tuple[str, float, str]], scale: Scale, rows: int, widest: int
) -> list[tuple[int, str, str]]:
    """Labels at the right end, one in a row. Base lines of one row share it where their labels fit side by side."""
    placed: dict[int, tuple[str, str]] = {}
    wanted = [(_row(scale, value, rows), label, role) for label, value, role in sorted(bases, key=lambda base: -base[1])]
    for one in series:
        last = next((y for _, y in reversed(one.points) if y is not None and usable(y, log=scale.log)), None)
        if last is not None:
            wanted.append((_row(scale, last, rows), one.label, one.role))
    for index, (row, label, role) in enumerate(wanted):
        if not label:
            continue
        if row in placed and index < len(bases) and cells(both := f"{placed[row][0]} {label}") <= widest:
            placed[row] = (both, placed[row][1])
            continue
        free = [at for at in range(rows) if at not in placed]
        if free:
            placed[min(free, key=lambda at: (abs(at - row), -at))] = (end(label, widest), role)
    return [(row, text, role) for row, (text, role) in placed.items()]


def _curves(series: list[Series], across: Scale, scale: Scale, width: int, rows: int) -> Canvas:
    canvas = Canvas(width, rows)
    for one in series:
        run: list[tuple[int, int]] = []
        for x, y in [*one.points, (0.0, None)]:
            if y is not None and usable(x) and usable(y, log=scale.log):
                run.append((across.place(x, width * 2), rows * 4 - 1 - scale.place(y, rows * 4)))
            else:
                _curve(canvas, run, one.role)
                run = []
    return canvas


def _curve(canvas: Canvas, run: list[tuple[int, int]], role: str) -> None:
    if len(set(run)) == 1:
        x, y = min(run[0][0], canvas.width * 2 - 2), run[0][1] // 2 * 2
        # One dot alone is hard to see.
        for at in ((x, y), (x + 1, y), (x, y + 1), (x + 1, y + 1)):
            canvas.dot(*at, role)
        return
    previous: tuple[int, int] | None = None
    for point in run:
        if previous is not None and point != previous:
            canvas.line(*previous, *point, role)
        previous = point


def _x_axis(sheet: Sheet, left: int, room: int, across: Scale, label: str, x_format: Format) -> None:
    y = sheet.height - 1
    first, last = x_format(across.low), "" if across.constant else x_format(across.high)
    if cells(first) + cells(last) + 1 > room:
        first = ""
    sheet.put(left, y, first, "axis")
    sheet.put(left + room - cells(last), y, last, "axis")
    x = left + (room - cells(label)) // 2
    if sheet.free(x - 1, y, cells(label) + 2):
        sheet.put(x, y, label, "dim")
