"""What the header of a weights file says: how large the model is, and its notes. No tensor is loaded. Torch-free."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_LARGEST_HEADER = 100_000_000
_NOTES = "__metadata__"
_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


@dataclass(frozen=True)
class Size:
    """``params`` are trained numbers, statistics of normalization not among them; ``bytes`` is the file."""

    params: int
    bytes: int


def file_size(path: Path) -> Size | None:
    """The size of a safetensors file; None for what is no such file."""
    try:
        shapes = [v["shape"] for k, v in _header(path).items() if k != _NOTES and k.rpartition(".")[2] not in _STATISTICS]
        return Size(sum(math.prod(shape) for shape in shapes), path.stat().st_size)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def notes(path: Path) -> dict[str, str]:
    """What a safetensors file was given as metadata; empty for what is no such file."""
    try:
        return {str(key): str(value) for key, value in _header(path).get(_NOTES, {}).items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def _header(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 0 < length <= _LARGEST_HEADER:
            raise ValueError(f"{path} has a header of {length} bytes")
        header: dict[str, Any] = json.loads(file.read(length))
    return header
