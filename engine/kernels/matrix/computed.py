"""The module that stands for a linear layer whose integers a function holds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, runtime_checkable

from torch import Tensor, nn


@runtime_checkable
class WithRows(Protocol):
    """What holds int8 weights in a layout whose rows can be looked up."""

    def rows(self, weight: Tensor) -> Callable[[Tensor], Tensor] | None: ...


class Computed(nn.Module):
    """A linear layer, (..., in) to (..., out) in float32."""

    def __init__(self, function: Callable[[Tensor], Tensor], shape: tuple[int, int], label: str) -> None:
        super().__init__()
        self._function, self._label = function, label
        self.out_features, self.in_features = shape

    def rows(self, weight: Tensor) -> Callable[[Tensor], Tensor] | None:
        """A way to look up rows of the int8 ``weight`` in the memory of this layer, or None."""
        return self._function.rows(weight) if isinstance(self._function, WithRows) else None

    def forward(self, x: Tensor) -> Tensor:
        return self._function(x)

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, {self._label}"
