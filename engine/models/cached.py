"""Weights that were trained here, found again by model and data. Torch-free."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from engine.models.registry import ModelEntry, Stem
from engine.models.size import notes
from engine.paths import cache_dir, matching
from engine.reading import MB, read_json


def cached_weights(model: str, data: str) -> Path:
    """Where weights of ``model`` trained on ``data`` are kept; they may not be there. ``data`` is as in a recipe: the name
    of a data set, or a folder, which is told from others of the same name by its whole path."""
    name = _plain(data)
    if os.sep in data or data.startswith((".", "~")) or Path(data).is_dir():
        place = Path(data).expanduser().resolve()
        name = f"{_plain(place.name)}-{hashlib.sha256(str(place).encode()).hexdigest()[:8]}"
    return _folder() / f"{_plain(model)}-{name}.safetensors"


def weights_of(entry: ModelEntry, given: str | None, data: str) -> tuple[Path, str] | None:
    """The file of a model's weights for ``data`` and where it comes from, in words: the one that is ``given``, the package's, or the one
    that is kept; None where there is none."""
    if given:
        return Path(given), f"from {given}"
    if packaged := entry.weights_for(data):
        return packaged, "from the package"
    kept = cached_weights(entry.name, data)
    return (kept, "from the cache") if kept.is_file() else None


def cached_for(model: str) -> Iterator[tuple[str, Path]]:
    """The data's name and the file of all weights of ``model`` that are kept."""
    start = f"{_plain(model)}-"
    for path in matching(_folder(), start, ".safetensors"):
        try:
            about = read_json(path.with_suffix(".json"), MB)
            found = (str(about["model"]), str(about["data"]))
        except (OSError, ValueError, KeyError, TypeError):
            found = (model, path.stem.removeprefix(start))
        if found[0] == model:
            yield found[1], path


def recorded_stem(weights: Path) -> Stem | None:
    """The stem that a weights file says it was trained with, or None."""
    stem = notes(weights).get("stem")
    return "small" if stem == "small" else "imagenet" if stem == "imagenet" else None


def _folder() -> Path:
    return cache_dir() / "weights"


def _plain(text: str) -> str:
    return "".join(c if c.isalnum() or c in "-_" else "-" for c in text)
