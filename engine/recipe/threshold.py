"""The error that a quantized model may have. Torch-free."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal, cast

from engine.errors import UsageError, nearest
from engine.recipe import yaml as recipe_yaml

Metric = Literal["mse", "drop", "sqnr", "agreement"]

_DECIMAL = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?", re.ASCII)
_ROUNDING_SLACK = 1e-9
_RANGES: dict[str, tuple[float, float, str]] = {
    "mse": (0.0, math.inf, "0 or more, such as mse:1e-7"),
    "drop": (-1.0, 1.0, "-1 to 1, such as drop:0.005"),
    "sqnr": (-math.inf, math.inf, "a finite number of dB, such as sqnr:30"),
    "agreement": (0.0, 1.0, "0 to 1, such as agreement:0.99"),
}


@dataclass(frozen=True)
class Threshold:
    """The error a quantized model may have.

    ``mse`` and ``drop`` (of the metric, 0..1) are upper bounds; ``sqnr`` (dB) and ``agreement`` (0..1) are lower bounds.
    Raises ``UsageError`` for a value out of the metric's range.
    """

    metric: Metric
    value: float

    def __post_init__(self) -> None:
        if self.metric not in _RANGES:
            raise UsageError(f"threshold metric is {recipe_yaml.show(self.metric)}: {nearest(str(self.metric), tuple(_RANGES))}")
        low, high, allowed = _RANGES[self.metric]
        if not (math.isfinite(self.value) and low <= self.value <= high):
            raise UsageError(f"threshold is '{self}': {self.metric} must be {allowed}")

    def __str__(self) -> str:
        # + 0.0 turns -0.0 into 0.0; repr is the shortest text that reads back as the same number.
        text = repr(self.value + 0.0).removesuffix(".0").replace("e-0", "e-")
        return f"{self.metric}:{text}"

    @classmethod
    def parse(cls, text: str) -> Threshold:
        """Read ``METRIC:VALUE``; raises ``UsageError``."""
        metric, colon, number = (part.strip() for part in text.partition(":"))
        if not colon:
            raise UsageError(f"threshold is {recipe_yaml.show(text)}: write METRIC:VALUE, such as drop:0.005")
        if metric not in _RANGES:
            raise UsageError(f"threshold is {recipe_yaml.show(text)}: no such metric, {nearest(metric, tuple(_RANGES))}")
        if not _DECIMAL.fullmatch(number):
            raise UsageError(f"threshold is {recipe_yaml.show(text)}: {metric} must be {_RANGES[metric][2]}")
        return cls(cast(Metric, metric), float(number))

    def met(self, *, baseline: float, value: float, mse: float, sqnr_db: float, agreement: float) -> bool:
        """Whether a quantized model's figures are good enough; a NaN figure never is.

        ``baseline`` and ``value`` are the metric of the fp32 and the quantized model, higher is better.
        """
        match self.metric:
            case "mse":
                return mse <= self.value
            case "drop":
                return baseline - value <= self.value + _ROUNDING_SLACK
            case "sqnr":
                return sqnr_db >= self.value
            case "agreement":
                return agreement >= self.value
