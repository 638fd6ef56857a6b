"""The last figures of a row as one line of blocks."""

from __future__ import annotations

import math
from collections.abc import Sequence

_BLOCKS = "▁▂▃▄▅▆▇█"


def sparkline(values: Sequence[float | None], width: int, top: float | None = None) -> str:
    """The last ``width`` of ``values`` from 0 to ``top``, or to the greatest of them; a blank where there is none."""
    shown = list(values)[-width:] if width > 0 else []
    known = [value for value in shown if value is not None and math.isfinite(value)]
    most = top or max(known, default=0.0)

    def block(value: float | None) -> str:
        if value is None or not math.isfinite(value):
            return " "
        share = min(max(value / most, 0.0), 1.0) if most > 0 else 0.0
        return _BLOCKS[min(int(share * len(_BLOCKS)), len(_BLOCKS) - 1)]

    return "".join(map(block, shown))
