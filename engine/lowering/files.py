"""Where a quantized model is kept: one file for every lowering."""

from __future__ import annotations

import json
from pathlib import Path

from engine.reading import INDEX, regular, shards_of_index

NAME = "model.safetensors"


def file_of(directory: str | Path) -> Path:
    """The file of a run's folder, or the file itself."""
    path = Path(directory)
    return file_in(path) if path.is_dir() else path


def file_in(directory: Path) -> Path:
    """The model's file in a run's folder, or its index where it is in several."""
    several = directory / INDEX
    return several if several.is_file() and not (directory / NAME).exists() else directory / NAME


_KINDS = {"decoder": "modules", "islands": "islands"}


def lowering_of_file(path: Path) -> str:
    """The lowering whose model a file holds, by its header; damaged files are judged where they are read."""
    from safetensors import SafetensorError, safe_open

    try:
        regular(path)
        with safe_open(shards_of_index(path)[0] if path.name == INDEX else path, "pt") as file:
            header = json.loads((file.metadata() or {}).get("qtui", "null"))
    except (SafetensorError, OSError, ValueError, LookupError, TypeError, RecursionError):
        return "graph"
    kind = header.get("kind") if isinstance(header, dict) else None
    return _KINDS.get(kind, "graph") if isinstance(kind, str) else "graph"


def is_decoder(path: Path) -> bool:
    """Whether the header says that it holds the modules lowering's model."""
    return lowering_of_file(path) == "modules"
