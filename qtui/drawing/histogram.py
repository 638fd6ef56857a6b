"""How values are distributed, and what a clipping range would cut off."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise
from typing import Literal

from qtui.drawing.numbers import compact
from qtui.drawing.sheet import Sheet, note
from qtui.drawing.spans import Line
from qtui.drawing.text import cells

CountScale = Literal["linear", "sqrt", "log"]

_EIGHTHS = " ▁▂▃▄▅▆▇█"
_SCALES: dict[str, Callable[[float], float]] = {"linear": float, "sqrt": math.sqrt, "log": math.log1p}


def histogram(
    start: float,
    bin_width: float,
    counts: Sequence[float],
    width: int,
    height: int,
    *,
    clip_low: float | None = None,
    clip_high: float | None = None,
    scale: CountScale = "sqrt",
    x_format: Callable[[float], str] = compact,
    empty: str = "no values yet",
) -> list[Line]:
    """Columns of eighth blocks over an axis with its figures, in exactly ``width`` by ``height`` cells. Bin ``i`` starts at
    ``start + i * bin_width``. Columns outside the clips have the role ``harm``, the clips ``clip``, the others ``bar``."""
    clean = [count if math.isfinite(count) and count > 0 else 0.0 for count in counts]
    if not any(clean) or bin_width <= 0 or width < 1 or height < 1:
        return note(empty, width, height)
    clips = [clip for clip in (clip_low, clip_high) if clip is not None and math.isfinite(clip)]
    low = min([start, *clips])
    high = max([start + bin_width * len(clean), *clips])
    step = (high - low) / width
    rows = max(height - 1, 1)
    sheet = Sheet(width, height)
    sums = _columns(start, bin_width, clean, low, step, width)
    top = max(_SCALES[scale](value) for value in sums)
    marks = {min(int((clip - low) / step), width - 1) for clip in clips}
    for x, value in enumerate(sums):
        centre = low + (x + 0.5) * step
        outside = (clip_low is not None and centre < clip_low) or (clip_high is not None and centre > clip_high)
        if x in marks:
            for y in range(rows):
                sheet.put(x, y, "┆", "clip")
            continue
        eighths = round(_SCALES[scale](value) / top * rows * 8)
        _column(sheet, x, rows, max(eighths, 1) if value > 0 else 0, "harm" if outside else "bar")
    if height > 1:
        _axis(sheet, low, high, clips, x_format)
    return sheet.lines()


def _columns(start: float, bin_width: float, counts: list[float], low: float, step: float, width: int) -> list[float]:
    """Counts by column: bins wider than a column are spread over several, narrower ones add up."""
    total = [0.0, *accumulate(counts)]

    def below(x: float) -> float:
        at = min(max((x - start) / bin_width, 0.0), float(len(counts)))
        whole = min(int(at), len(counts) - 1)
        return total[whole] + (at - whole) * counts[whole]

    edges = [below(low + x * step) for x in range(width)] + [total[-1]]
    return [max(after - before, 0.0) for before, after in pairwise(edges)]


def _column(sheet: Sheet, x: int, rows: int, eighths: int, role: str) -> None:
    for row in range(rows):
        part = min(max(eighths - 8 * (rows - 1 - row), 0), 8)
        if part:
            sheet.put(x, row, _EIGHTHS[part], role)


def _axis(sheet: Sheet, low: float, high: float, clips: list[float], x_format: Callable[[float], str]) -> None:
    for named in (True, False):
        labels = [(clip, f"clip {x_format(clip)}" if named else x_format(clip), "clip") for clip in reversed(clips)]
        labels += [(high, x_format(high), "axis"), (low, x_format(low), "axis")]
        if low < 0 < high:
            labels.append((0.0, "0", "axis"))
        placed, dropped = _placed(labels, low, high, sheet.width)
        if not dropped or not named:
            for x, text, role in placed:
                sheet.put(x, sheet.height - 1, text, role)
            return


def _placed(labels: list[tuple[float, str, str]], low: float, high: float, width: int) -> tuple[list[tuple[int, str, str]], bool]:
    """Labels under their columns, the first given first; those that would touch an earlier one are dropped."""
    placed: list[tuple[int, str, str]] = []
    dropped = False
    for value, text, role in labels:
        column = min(int((value - low) / (high - low) * width), width - 1)
        x = min(max(column - (cells(text) - 1) // 2, 0), width - cells(text))
        if x >= 0 and all(x + cells(text) < at or at + cells(other) < x for at, other, _ in placed):
            placed.append((x, text, role))
        elif all(text != other.removeprefix("clip ") for _, other, _ in placed):
            dropped = True
    return placed, dropped
