"""Names of data that are no files. Torch-free."""

from __future__ import annotations

RANDOM = "random:"


def is_random(name: str) -> bool:
    """Whether data are numbers drawn at random, as ``random:3x224x224`` asks."""
    return name.startswith(RANDOM)
