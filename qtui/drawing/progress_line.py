"""A stage's progress on one line."""

from __future__ import annotations

from qtui.drawing.bars import progress
from qtui.drawing.spans import Line
from qtui.drawing.table_lines import clipped
from qtui.drawing.text import cells

_SHORTEST = 8
_LEAST = 3
_WIDEST = 60
_GAP = "   "


def progress_line(done: float, total: float, rate: str, left: str, width: int) -> Line:
    """Bar, percent, rate and time left in exactly ``width`` cells. Where they do not fit, the rate goes first, then the time
    left, then the percent. While the total is unknown (0) the count stands where the percent would."""
    share = f"{min(int(100 * max(done, 0) / total), 100):>3} %" if total > 0 else f"{done:,.0f}"
    texts = [share, rate, left]
    for dropped, least in ((1, _SHORTEST), (2, _SHORTEST), (0, _LEAST)):
        if width - sum(cells(text) + len(_GAP) for text in texts if text) >= least:
            break
        texts[dropped] = ""
    shown = [text for text in texts if text]
    length = min(width - sum(cells(text) + len(_GAP) for text in shown), _WIDEST)
    spans: Line = [(progress(done, total, length), "bar")]
    for text in shown:
        spans += [(_GAP if text is not share else _GAP[1:], ""), (text, "percent" if text is share else "dim")]
    return clipped(spans, width)
