"""The paragraphs of ``python_modules`` as texts without labels."""

from __future__ import annotations

from typing import Any

from engine.data.items import SPLIT_NAMES, ItemData
from engine.data.text import python_modules
from engine.data.text.passages import Passage, in_splits


def load(part: Any) -> ItemData:
    """In the same splits. Raises as ``python_modules.load``."""
    whole = python_modules.load(part)
    groups = {}
    for split in SPLIT_NAMES:
        rows = whole.split(split)
        groups[split] = [(Passage(texts[0]),) for texts in rows.read(range(len(rows))).inputs]
    return in_splits("python-paragraphs", groups, ())
