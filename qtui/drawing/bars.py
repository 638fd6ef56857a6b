"""Horizontal bars of eighth blocks."""

from __future__ import annotations

import math

_EIGHTHS = " ▏▎▍▌▋▊▉█"


def bar(share: float, width: int) -> str:
    """``share`` (0 to 1) of ``width`` cells, padded to ``width``. What is more than nothing shows at least an eighth."""
    if width <= 0:
        return ""
    share = 0.0 if math.isnan(share) else min(max(share, 0.0), 1.0)
    eighths = round(share * width * 8)
    if share > 0:
        eighths = max(eighths, 1)
    full, part = divmod(eighths, 8)
    drawn = "█" * full + (_EIGHTHS[part] if part else "")
    return drawn.ljust(width)


def progress(done: float, total: float, width: int) -> str:
    """A bar for ``done`` of ``total``: full only when everything is done; empty while the total is unknown."""
    if width <= 0 or not (total > 0 and done > 0):
        return bar(0.0, width)
    if done >= total:
        return "█" * width
    eighths = min(int(done / total * width * 8), width * 8 - 1)
    return bar(eighths / (width * 8), width)
