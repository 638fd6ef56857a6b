"""Where downloaded data sets are kept between runs."""

from __future__ import annotations

import os
from pathlib import Path


def data_cache() -> Path:
    """``$QTUI_CACHE/data``, or ``~/.cache/qtui/data``. It may not exist yet."""
    root = os.environ.get("QTUI_CACHE")
    return (Path(root).expanduser() if root else Path.home() / ".cache" / "qtui") / "data"
