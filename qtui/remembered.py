"""What the app remembers from one start to the next: the theme, and which hints were seen. A file in the cache; without it all is new."""

from __future__ import annotations

import json
from typing import Any

from engine.errors import EngineError
from engine.paths import cache_dir, save
from engine.reading import read_json

_NAME = "app.json"
_LARGEST = 65_536


def remembered(key: str) -> Any:
    """What was remembered under ``key``; None where nothing was, or the file cannot be read."""
    return _all().get(key)


def remember(key: str, value: Any) -> None:
    """Keep ``value``, where the cache can be written."""
    try:
        save(cache_dir() / _NAME, (json.dumps({**_all(), key: value}) + "\n").encode())
    except (EngineError, OSError):
        # The app works without it, and says nothing about what nobody asked for.
        return


def _all() -> dict[str, Any]:
    try:
        found = read_json(cache_dir() / _NAME, _LARGEST)
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
