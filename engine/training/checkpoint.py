"""A training's checkpoint: written whole, and read back without running code from it."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from engine.errors import EngineError
from engine.paths import save
from engine.reading import regular


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
        regular(path)
        state: Any = torch.load(path, map_location="cpu", weights_only=True)
        return dict(state) if state.get("fingerprint") == fingerprint else None
    except Exception as error:
        raise broken(path, error) from error


def broken(path: Path | None, error: Exception) -> EngineError:
    return EngineError(f"{path} cannot be continued ({type(error).__name__}): remove it to train from the start")


class Due:
    """Whether to save again: at most every ``interval`` seconds of ``clock``, and so rarely that a twentieth of the time goes into it."""

    def __init__(self, clock: Callable[[], float], interval: float = 30.0) -> None:
        self._clock, self._interval, self._next = clock, interval, clock() + interval

    def __call__(self) -> bool:
        return self._clock() >= self._next

    def saved(self, began: float) -> None:
        """A save that began at ``began`` has ended."""
        now = self._clock()
        self._next = now + max(self._interval, 20 * (now - began))


def random_state(device: str) -> dict[str, Tensor]:
    """The generators that torch draws from by itself."""
    state = {"cpu": torch.get_rng_state()}
    return {**state, "cuda": torch.cuda.get_rng_state(device)} if torch.device(device).type == "cuda" else state


def restore_random(state: Mapping[str, Tensor], device: str) -> None:
    """Raises KeyError for the state of another device."""
    torch.set_rng_state(state["cpu"])
    if torch.device(device).type == "cuda":
        torch.cuda.set_rng_state(state["cuda"], device)
