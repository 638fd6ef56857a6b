"""fp32 outputs that are compared with many times."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.utils import _pytree

from engine.reading import MB
from engine.tasks.base import Batch, Forward

_MOST = 256 * MB


class Remembered:
    """A forward whose outputs on a split are the same each time: up to a size they are kept, in order. ``rewind`` before each pass."""

    def __init__(self, forward: Forward, most: int = _MOST) -> None:
        self._forward, self._most = forward, most
        self._outputs: list[Any] = []
        self._place = self._bytes = 0

    def rewind(self) -> None:
        self._place = 0

    def __call__(self, batch: Batch) -> Any:
        self._place += 1
        if self._place <= len(self._outputs):
            return self._outputs[self._place - 1]
        raw = self._forward(batch)
        if self._place == len(self._outputs) + 1:
            self._bytes += sum(x.numel() * x.element_size() for x in _pytree.tree_leaves(raw) if isinstance(x, Tensor))
            if self._bytes <= self._most:
                self._outputs.append(raw)
        return raw
