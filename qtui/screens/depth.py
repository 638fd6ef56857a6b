"""The noise along a model's depth, of layers that were measured. Pure functions."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from qtui.drawing.depth import Place
from qtui.screens.report_rows import number

TITLE = "Noise along the depth"
LEGEND = "bars: each layer alone ─ line: all so far ─ up is worse"
EMPTY = "no layer's noise was measured"
_BITS = re.compile(r"w(\d)")


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
