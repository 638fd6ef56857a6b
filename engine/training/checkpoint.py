"""A training's checkpoint: written whole, and read back without running code from it."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import torch

from engine.errors import EngineError
from engine.paths import save


def write(path: Path, state: dict[str, Any]) -> None:
    """``state`` holds ``fingerprint``, which tells the training it belongs to. Raises EngineError where it cannot be written."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    save(path, buffer.getvalue())


def read(path: Path | None, fingerprint: str) -> dict[str, Any] | None:
    """None for no checkpoint and for that of another training. Raises EngineError for one that is broken."""
    if path is None or not path.exists():
        return None
    try:
        state: Any = torch.load(path, map_location="cpu", weights_only=True)
        return dict(state) if state.get("fingerprint") == fingerprint else None
    except Exception as error:
        raise broken(path, error) from error


def broken(path: Path | None, error: Exception) -> EngineError:
    return EngineError(f"{path} cannot be continued ({type(error).__name__}): remove it to train from the start")
