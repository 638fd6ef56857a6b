"""How large a model is, read from the header of its weights file: no tensor is loaded. Torch-free."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

_LARGEST_HEADER = 100_000_000
_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


@dataclass(frozen=True)
class Size:
    """``params`` are trained numbers, statistics of normalization not among them; ``bytes`` is the file."""

    params: int
    bytes: int


def file_size(path: Path) -> Size | None:
    """The size of a safetensors file; None for what is no such file."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 0 < length <= _LARGEST_HEADER:
                return None
            header = json.loads(file.read(length))
        shapes = [v["shape"] for k, v in header.items() if k != "__metadata__" and k.rpartition(".")[2] not in _STATISTICS]
        return Size(sum(math.prod(shape) for shape in shapes), path.stat().st_size)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
