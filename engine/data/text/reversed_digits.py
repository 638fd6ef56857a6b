"""Digits spelled and reversed, made: "four seven one" becomes "one seven four"."""

from __future__ import annotations

import random
from typing import Any

from engine.data.items import ItemData
from engine.data.text.sources import Pair, in_splits

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SEED = 10
COUNTS = {"train": 4000, "validation": 300, "test": 500}
_LEAST, _MOST = 2, 7


def load(part: Any) -> ItemData:
    """Two to seven digits each, none of a split in another."""
    draw = random.Random(SEED)
    seen: set[tuple[str, ...]] = set()
    rows: list[Pair] = []
    while len(rows) < sum(COUNTS.values()):
        digits = tuple(draw.choice(WORDS) for _ in range(draw.randint(_LEAST, _MOST)))
        if digits not in seen:
            seen.add(digits)
            rows.append(Pair(" ".join(digits), " ".join(reversed(digits))))
    test, validation = COUNTS["test"], COUNTS["validation"]
    return in_splits(
        "reversed-digits", {"test": rows[:test], "validation": rows[test : test + validation], "train": rows[test + validation :]}, ()
    )
