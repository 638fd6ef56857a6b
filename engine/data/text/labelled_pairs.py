"""Pairs of texts with a label each, from a person's own files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from engine.data.items import ItemData
from engine.data.text.labelled import labelled


def load(place: Path, part: Any) -> ItemData:
    """Raises EngineError, in one line with the file and the line, for what cannot be read."""
    return labelled(place, pairs=True)
