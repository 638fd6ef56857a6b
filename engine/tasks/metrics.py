"""Metrics and workloads as values: names, directions, units, words. Torch-free."""

from __future__ import annotations

import math
from dataclasses import dataclass

SAME = 5e-5


@dataclass(frozen=True)
class Metric:
    """One measure of quality.

    ``unit`` "%" marks a part (0..1) that is shown in per cent. ``relative`` metrics (perplexity) are compared as ratios.
    ``bounds`` are the least and the greatest value; ``chance`` is the value that guessing reaches, None where it is not known.

    >>> Metric("accuracy", "%").drop(0.90, 0.88)
    0.020000000000000018
    """

    name: str
    unit: str = ""
    higher_is_better: bool = True
    relative: bool = False
    bounds: tuple[float, float] = (-math.inf, math.inf)
    chance: float | None = None
    digits: str = ".4g"

    def drop(self, baseline: float, value: float) -> float:
        """By how much ``value`` is worse than ``baseline``: a difference, or of a relative metric a part of the baseline."""
        worse = baseline - value if self.higher_is_better else value - baseline
        if not self.relative:
            return worse
        # As a ratio less one: the same rounding for a rise whatever the size of the perplexity.
        return value / baseline - 1 if not self.higher_is_better else 1 - value / baseline

    def rank(self, value: float) -> float:
        """A number that is greater where ``value`` is better."""
        return value if self.higher_is_better else -value

    def format(self, value: float) -> str:
        if self.unit == "%":
            return f"{value:.2%}"
        return f"{value:{self.digits}}{f' {self.unit}' if self.unit else ''}"

    def half_width(self, value: float) -> str:
        """An interval's half-width in the metric's own unit: ``±0.9`` points, ``±1.20``."""
        return f"±{100 * value:.1f}" if self.unit == "%" else f"±{value:{self.digits}}"

    def titled(self, value: float) -> str:
        """The value with the metric's name, but for accuracy, which per cent alone mean."""
        return self.format(value) if self.name == "accuracy" else f"{self.name} {self.format(value)}"

    def difference(self, baseline: float, value: float) -> str:
        """``0.20 points under fp32``, ``0.15 % over fp32's 65.13``, ``the same as fp32``."""
        drop, side = self.drop(baseline, value), "over" if value > baseline else "under"
        if abs(drop) < SAME * (1 if self.relative or self.unit == "%" else max(abs(baseline), 1e-12)):
            return "the same as fp32"
        if self.relative:
            return f"{100 * abs(drop):.2f} % {side} fp32's {self.format(baseline)}"
        if self.unit == "%":
            return f"{100 * abs(drop):.2f} points {side} fp32"
        return f"{self.format(abs(drop))} {side} fp32's {self.format(baseline)}"


@dataclass(frozen=True)
class MetricValue:
    """A measured value with its 95 % interval; None where there is none to be told. ``half`` is half of its width where the
    interval is not symmetric around the value."""

    value: float
    low: float | None = None
    high: float | None = None
    half: float | None = None

    @property
    def interval(self) -> float:
        """Half of the interval's width; 0 without one."""
        if self.half is not None:
            return self.half
        return 0.0 if self.low is None or self.high is None else (self.high - self.low) / 2

    def to_dict(self) -> dict[str, float | None]:
        return {"value": self.value, "low": self.low, "high": self.high}


@dataclass(frozen=True)
class Workload:
    """Something that is timed. ``phrase`` ends a sentence (``3.1× faster at batch 1``), ``head`` heads a column, ``short`` a
    narrow one; ``word`` stands before a runtime's time. ``batch`` is the number of items of one call."""

    key: str
    phrase: str
    head: str
    short: str
    word: str
    batch: int = 1

    def to_dict(self) -> dict[str, str]:
        return {"key": self.key, "phrase": self.phrase, "head": self.head, "short": self.short, "word": self.word}


def batched(size: int) -> Workload:
    """One call on ``size`` items."""
    return Workload(f"batch_{size}", f"at batch {size}", f"batch {size}", f"×{size}", f"at batch {size}", size)


DECODE = Workload("decode", "at one token after the other", "a token", "token", "a token")
PREFILL = Workload("prefill", "at reading", "a prompt", "prompt", "a prompt")

ACCURACY = Metric("accuracy", "%", bounds=(0.0, 1.0))
PERPLEXITY = Metric("perplexity", higher_is_better=False, relative=True, bounds=(1.0, math.inf), digits=".2f")
MAE = Metric("MAE", higher_is_better=False, relative=True, bounds=(0.0, math.inf))
R2 = Metric("R²", bounds=(-math.inf, 1.0), digits=".4f")
F1 = Metric("F1", "%", bounds=(0.0, 1.0))
MATTHEWS = Metric("Matthews", bounds=(-1.0, 1.0), chance=0.0, digits=".4f")
COSINE = Metric("cosine", bounds=(-1.0, 1.0), digits=".5f")
SPEARMAN = Metric("Spearman", bounds=(-1.0, 1.0), chance=0.0, digits=".4f")
LOSS = Metric("loss", "nats", higher_is_better=False, relative=True, bounds=(0.0, math.inf))
EXACT = Metric("exact match", "%", bounds=(0.0, 1.0))
# What figures of the registry's tasks are shown by, wherever a name and a value have come alone.
METRICS = {metric.name: metric for metric in (ACCURACY, PERPLEXITY, MAE, R2, F1, MATTHEWS, COSINE, SPEARMAN, LOSS, EXACT)}


def wilson(right: float, total: int) -> float:
    """Half the width of the Wilson interval at 95 % of a part (0..1) ``right`` of ``total`` (Wilson 1927)."""
    z, p = 1.96, right / total
    return z / (1 + z * z / total) * math.sqrt(p * (1 - p) / total + z * z / (4 * total * total))
