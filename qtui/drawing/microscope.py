"""One layer's weights before and after rounding, and its channels in the order of their magnitude, as lines of a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise

from qtui.drawing.braille import Canvas
from qtui.drawing.numbers import compact
from qtui.drawing.sheet import Sheet, note
from qtui.drawing.spans import Line
from qtui.drawing.text import cells

_EIGHTHS = " ▁▂▃▄▅▆▇█"
_LABEL = 8
_NARROWEST = 24
Counts = tuple[float, float, Sequence[int]]
"""A histogram: where it starts, the width of a bin, the counts."""


def rounding(before: Counts, after: Counts, ticks: Sequence[float], width: int, height: int) -> list[Line]:
    """Two histograms over one axis in parts of the grid's end: ``before`` above, the grid's levels as ticks between, ``after`` below. In
    exactly ``width`` by ``height`` cells; five rows are the least that shows both."""
    left = _LABEL if width - _LABEL >= _NARROWEST else 0
    room = width - left
    if height < 5 or room < _NARROWEST or not sum(before[2]):
        return note("no room for the weights" if sum(before[2]) else "no weights", width, height)
    sheet = Sheet(width, height)
    above = (height - 2) // 2
    below = height - 2 - above
    low, high = before[0], before[0] + before[1] * len(before[2])
    _bars(sheet, before, left, 0, room, above, "bar")
    _bars(sheet, after, left, above + 1, room, below, "other")
    sheet.put(left, above, "─" * room, "axis")
    for tick in ticks:
        sheet.put(left + _column(tick, low, high, room), above, "┴", "clip")
    if left:
        sheet.put(0, above - 1, "before", "dim")
        sheet.put(0, above + 1, "after", "dim")
    # What lies beyond the grid's end is clipped to it.
    for value, text in ((-1.0, "-end"), (0.0, "0"), (1.0, "grid's end")):
        if low <= value <= high:
            x = left + _column(value, low, high, room) - (cells(text) - 1 if value > 0 else 0 if value < 0 else cells(text) // 2)
            sheet.put(x, height - 1, text, "axis")
    return sheet.lines()


def _column(value: float, low: float, high: float, room: int) -> int:
    return min(max(int((value - low) / (high - low or 1.0) * room), 0), room - 1)


def _bars(sheet: Sheet, found: Counts, left: int, top: int, room: int, rows: int, role: str) -> None:
    start, wide, counts = found
    low, high = start, start + wide * len(counts)
    sums = [0.0] * room
    if 3 * sum(1 for count in counts if count) < len(counts):
        # Levels that stand alone are drawn one column wide, where they are.
        for index, count in enumerate(counts):
            if count:
                sums[_column(start + (index + 0.5) * wide, low, high, room)] += count
    elif len(counts) <= room:
        sums = [float(counts[int((x + 0.5) / room * len(counts))]) for x in range(room)]
    else:
        total = [0.0, *accumulate(float(count) for count in counts)]
        edges = [round(x / room * len(counts)) for x in range(room + 1)]
        # Columns have one bin or the next more: their density is what is drawn.
        sums = [(total[b] - total[a]) / max(b - a, 1) for a, b in pairwise(edges)]
    most = max(sums) or 1.0
    for x, value in enumerate(sums):
        eighths = max(round(value / most * rows * 8), 1) if value else 0
        for row in range(rows):
            part = min(max(eighths - 8 * (rows - 1 - row), 0), 8)
            if part:
                sheet.put(left + x, top + row, _EIGHTHS[part], role)


def channels(lows: Sequence[float], highs: Sequence[float], median: float, standing: float, width: int, height: int) -> list[Line]:
    """The ends of channels from the largest magnitude to the smallest, each a line from its least to its greatest weight; those of which
    the magnitude is above ``standing`` in the colour of harm, that of the ``median`` channel as a dotted line."""
    top = max((abs(value) for value in (*lows, *highs)), default=0.0)
    if not lows or top <= 0 or height < 2:
        return note("no channels", width, height)
    sheet = Sheet(width, height)
    texts = (compact(top, 2), compact(-top, 2))
    left = max(map(cells, texts)) + 1 if width - max(map(cells, texts)) - 1 >= _NARROWEST else 0
    room = width - left
    dots, middle = 4 * height, 2 * height
    canvas = Canvas(room, height)

    def at(value: float) -> int:
        return min(max(round(middle - 0.5 - value / top * (middle - 1)), 0), dots - 1)

    for x in range(0, 2 * room, 3):
        for value in (median, -median):
            canvas.dot(x, at(value), "base")
    count = min(len(lows), 2 * room)
    for place in range(count):
        index = place * len(lows) // count
        first, after = place * 2 * room // count, (place + 1) * 2 * room // count
        role = "harm" if max(abs(lows[index]), abs(highs[index])) > standing else "bar"
        # A gap between neighbours, where there is room for the same one between all of them.
        for x in range(first, after - (2 * room >= 3 * count)):
            canvas.line(x, at(highs[index]), x, at(lows[index]), role)
    for x, y, char, role in canvas.drawn():
        sheet.put(left + x, y, char, role)
    if left:
        sheet.put(left - 1 - cells(texts[0]), 0, texts[0], "axis")
        sheet.put(left - 1 - cells(texts[1]), height - 1, texts[1], "axis")
    return sheet.lines()
