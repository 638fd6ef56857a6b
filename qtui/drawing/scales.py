"""From values to places on a chart."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Scale:
    """Values from ``low`` to ``high``, linear or logarithmic. Where both are one value it stands in the middle."""

    low: float
    high: float
    log: bool = False

    @property
    def constant(self) -> bool:
        return self.low == self.high

    def share(self, value: float) -> float:
        """0 at ``low``, 1 at ``high``."""
        if self.constant:
            return 0.5
        low, high, at = self._linear(self.low), self._linear(self.high), self._linear(value)
        # Halved, for the span of two huge values of different signs would overflow.
        return (at / 2 - low / 2) / (high / 2 - low / 2)

    def place(self, value: float, count: int) -> int:
        """The place of ``value`` among ``count``, from 0 for ``low`` to the last for ``high``."""
        return round(min(max(self.share(value), 0.0), 1.0) * (count - 1))

    def value(self, share: float) -> float:
        """The value at a share of the way from ``low`` to ``high``."""
        if self.log:
            low, high = math.log10(self.low), math.log10(self.high)
            return float(10 ** (low + (high - low) * share))
        return self.low * (1 - share) + self.high * share

    def _linear(self, value: float) -> float:
        return math.log10(value) if self.log else value


def spanning(values: Iterable[float], *, log: bool = False) -> Scale | None:
    """The scale that holds all of ``values``; None without any. Logarithmic only where a value is above zero."""
    found = list(values)
    if log and (positive := [value for value in found if value > 0]):
        return Scale(min(positive), max(positive), True)
    return Scale(min(found), max(found)) if found else None


def usable(value: float | None, *, log: bool = False) -> bool:
    """Whether a value has a place on a scale at all."""
    return value is not None and math.isfinite(value) and (not log or value > 0)
