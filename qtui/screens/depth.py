"""The noise along a model's depth, of layers that were measured: a chart beside their table, with its cursor."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from textual.geometry import Size

from qtui.drawing.depth import Place, depth_chart
from qtui.painting import titles
from qtui.screens.report_rows import number
from qtui.widgets.chart import Chart

TITLE = "Noise along the depth"
LEGEND = "bars: each layer alone ─ line: all so far ─ up is worse"
EMPTY = "no layer's noise was measured"
# From this width on the chart is always there; it needs so many rows.
WIDE, LEAST = 160, 20
_BITS = re.compile(r"w(\d)")


class DepthChart(Chart):
    """``wanted`` is whether a person asked for it."""

    def __init__(self, *, id: str | None = None, classes: str | None = None) -> None:
        super().__init__(id=id, classes=classes)
        self.wanted = False

    def fits(self, window: Size) -> bool:
        """Whether it is to be shown in a window of that size."""
        return (self.wanted or window.width >= WIDE) and window.height >= LEAST

    def turn(self, window: Size) -> str:
        """Show it, or hide it again; why that makes no difference in this window, or nothing."""
        self.wanted = not self.wanted
        if window.height < LEAST:
            return f"The chart needs {LEAST} lines, and this window has {window.height}"
        return "In a window as wide as this the chart is always there" if window.width >= WIDE else ""

    def show_layers(self, rows: Sequence[Mapping[str, Any]], name: str | None) -> None:
        """The layers' noise in the order of the graph, the one of that name marked."""
        titles(self, TITLE, LEGEND)
        found, cursor = places(rows), index_of(rows, name)
        self.show(lambda width, height: depth_chart(found, width, height, cursor=cursor, empty=EMPTY))


def places(rows: Sequence[Mapping[str, Any]]) -> tuple[Place, ...]:
    """The layers in the order of the graph. Of a language model each layer is measured alone, so nothing gathers."""
    alone = all(row.get("own_sqnr_db") == row.get("sqnr_db") for row in rows)
    return tuple(
        Place(
            str(row.get("name") or "?"), number(row, "own_sqnr_db"), None if alone else number(row, "sqnr_db"),
            role(str(row.get("actual") or "")),
        )
        for row in rows
    )  # fmt: skip


def role(actual: str) -> str:
    """The colour of a layer by the bits of its weights: fewer than eight stand out, three and fewer more."""
    found = _BITS.match(actual)
    bits = int(found.group(1)) if found else 8
    return "bar" if bits >= 8 else "harm" if bits <= 3 else "change"


def index_of(rows: Sequence[Mapping[str, Any]], name: str | None) -> int | None:
    """The place of the layer of that name."""
    return next((index for index, row in enumerate(rows) if row.get("name") == name), None)
