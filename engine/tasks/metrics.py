"""Metrics and workloads as values: names, directions, units, words. Torch-free."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from engine.plain_text import one_line

SAME = 5e-5
# What a report may ask of a number's form: it is read from files that anybody may have edited.
_DIGITS = re.compile(r"\.[0-9][efg]")
_LONGEST = 40


@dataclass(frozen=True)
class Metric:
    """One measure of quality.

    ``unit`` "%" marks a part (0..1) that is shown in per cent. ``relative`` metrics (perplexity) are compared as ratios.
    ``bounds`` are the least and the greatest value; ``chance`` is the value that guessing reaches, None where it is not known.
    ``against_fp32`` marks a distance from fp32's own outputs: fp32 has none from itself, and no difference of two is told.
    ``digits`` is the form of a value. ``logarithmic`` says that the errors of a difference which an evaluator tells are those of the
    metric's logarithm.

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
    against_fp32: bool = False
    logarithmic: bool = False

    def drop(self, baseline: float, value: float) -> float:
        """By how much ``value`` is worse than ``baseline``: a difference, or of a relative metric a part of the baseline."""
        worse = baseline - value if self.higher_is_better else value - baseline
        if not self.relative:
            return worse
        # As a ratio less one: the same rounding for a rise whatever the size of the perplexity.
        return value / baseline - 1 if not self.higher_is_better else 1 - value / baseline

    @property
    def exact(self) -> float:
        """The value of outputs that are the reference's own: the better one of ``bounds``."""
        return self.bounds[1] if self.higher_is_better else self.bounds[0]

    def rank(self, value: float) -> float:
        """A number that is greater where ``value`` is better."""
        return value if self.higher_is_better else -value

    @property
    def scale(self) -> float:
        """What a value is multiplied by to be shown."""
        return 100.0 if self.unit == "%" else 1.0

    @property
    def head(self) -> str:
        """The name with the unit, as it heads a column of bare values: ``accuracy %``."""
        return f"{self.name} {self.unit}" if self.unit else self.name

    def bare(self, value: float) -> str:
        """The value as it is shown, without its unit: ``98.33``, ``23.41``, ``0.3493``; ``exact`` for a distance of fp32 from itself."""
        if self.against_fp32 and value == self.exact:
            return "exact"
        return f"{100 * value:.2f}" if self.unit == "%" else re.sub(r"e([-+])0+(?=\d)", r"e\1", f"{value:{self.digits}}").replace("e+", "e")

    def shown(self, value: float) -> str:
        """The value with its unit: ``98.33 %``, ``12.5 dB``."""
        bare = self.bare(value)
        return f"{bare} {self.unit}" if self.unit and bare != "exact" else bare

    def format(self, value: float) -> str:
        """The same as sentences of a verdict have it: ``98.33%``."""
        return f"{value:.2%}" if self.unit == "%" else self.shown(value)

    def half_width(self, value: float, fine: bool = True) -> str:
        """An interval's half-width in the metric's own unit: ``±0.9`` points, ``±1.20``, ``±7``; with a digit less where it need not
        be ``fine``."""
        if self.unit == "%":
            return f"±{100 * value:.1f}"
        if self.digits.endswith("f"):
            return f"±{value:.{max(int(self.digits[1]) - (not fine), 0)}f}"
        return f"±{value:.2g}"

    def by(self, change: float) -> str:
        """The size of a change, as ``drop`` tells it: ``0.20 points``, of a relative metric ``0.44 %``, or in the metric's unit."""
        if self.relative:
            return f"{100 * abs(change):.2f} %"
        return f"{100 * abs(change):.2f} points" if self.unit == "%" else self.shown(abs(change))

    def titled(self, value: float) -> str:
        """The value with the metric's name, but for accuracy, which per cent alone mean."""
        return self.format(value) if self.name == "accuracy" else f"{self.name} {self.format(value)}"

    def difference(self, baseline: float, value: float) -> str:
        """``0.20 points under fp32``, ``0.15 % over fp32's 65.13``, ``the same as fp32``, ``against fp32``; of values that are not all
        finite ``against fp32's inf``."""
        if self.against_fp32:
            return "against fp32"
        if not (math.isfinite(baseline) and math.isfinite(value)):
            return f"against fp32's {self.format(baseline)}"
        drop, side = self.drop(baseline, value), "over" if value > baseline else "under"
        if abs(drop) < SAME * (1 if self.relative or self.unit == "%" else max(abs(baseline), 1e-12)):
            return "the same as fp32"
        fp32 = "fp32" if self.unit == "%" and not self.relative else f"fp32's {self.format(baseline)}"
        return f"{self.by(drop)} {side} {fp32}"

    def to_dict(self) -> dict[str, Any]:
        """One of the report's ``measures``."""
        return {
            "name": self.name, "unit": self.unit, "higher_is_better": self.higher_is_better, "relative": self.relative,
            "digits": self.digits,
        }  # fmt: skip

    @staticmethod
    def from_dict(row: Mapping[str, Any]) -> Metric:
        """The inverse of ``to_dict``, of a row whose types fit; what is absent or odd is taken as by default."""
        name, unit = (one_line(row.get(key) or "", _LONGEST) for key in ("name", "unit"))
        digits, higher = str(row.get("digits") or ""), row.get("higher_is_better")
        return Metric(
            name, unit, True if higher is None else bool(higher), bool(row.get("relative")),
            digits=digits if _DIGITS.fullmatch(digits) else Metric.digits, against_fp32=name in METRICS and METRICS[name].against_fp32,
        )  # fmt: skip


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
PERPLEXITY = Metric("perplexity", higher_is_better=False, relative=True, bounds=(1.0, math.inf), digits=".2f", logarithmic=True)
MAE = Metric("MAE", higher_is_better=False, relative=True, bounds=(0.0, math.inf))
BOX_MAP = Metric("mAP 50:95", "%", bounds=(0.0, 1.0))
BOX_MAP_50 = Metric("mAP 50", "%", bounds=(0.0, 1.0))
R2 = Metric("R²", bounds=(-math.inf, 1.0), digits=".4f")
SQNR = Metric("SQNR", "dB", digits=".1f", against_fp32=True)
LARGEST_ERROR = Metric("largest error", higher_is_better=False, bounds=(0.0, math.inf), digits=".3g", against_fp32=True)
AGREEMENT = Metric("agreement", "%", bounds=(0.0, 1.0))
MIOU = Metric("mIoU", "%", bounds=(0.0, 1.0))
PIXEL_ACCURACY = Metric("pixel accuracy", "%", bounds=(0.0, 1.0))
DICE = Metric("Dice", "%", bounds=(0.0, 1.0))
MAP = Metric("mAP", "%", bounds=(0.0, 1.0))
F1 = Metric("F1", "%", bounds=(0.0, 1.0))
MATTHEWS = Metric("Matthews", bounds=(-1.0, 1.0), chance=0.0, digits=".4f")
COSINE = Metric("cosine", bounds=(-1.0, 1.0), digits=".5f")
SPEARMAN = Metric("Spearman", bounds=(-1.0, 1.0), chance=0.0, digits=".4f")
# A difference in nats is the part by which the perplexity rises, as a language model's is compared.
LOSS = Metric("loss", "nats", higher_is_better=False, bounds=(0.0, math.inf), digits=".4f")
EXACT = Metric("exact match", "%", bounds=(0.0, 1.0))
# What figures of the registry's tasks are shown by, wherever a name and a value have come alone.
METRICS = {
    metric.name: metric
    for metric in (
        ACCURACY, PERPLEXITY, MAE, R2,
        SQNR, LARGEST_ERROR, AGREEMENT,
        MIOU, PIXEL_ACCURACY, DICE, MAP, F1,
        BOX_MAP, BOX_MAP_50,
        MATTHEWS, COSINE, SPEARMAN, LOSS, EXACT,
    )
}  # fmt: skip


def known(name: str | Metric) -> Metric:
    """The metric of that name as it is shown: one of the registry's tasks, or a plain number."""
    return name if isinstance(name, Metric) else METRICS.get(name) or Metric(name)


def measures(rows: Any, deciding: str = "") -> tuple[Metric, ...]:
    """The metrics of a run, from the ``measures`` of its report or of its ``Setting``, the ``deciding`` one first. Reports of earlier
    versions have none: it is then what its name says."""
    found = [Metric.from_dict(row) for row in rows if isinstance(row, Mapping)] if isinstance(rows, Sequence) else []
    named = {metric.name: metric for metric in found if metric.name}
    first = named.pop(deciding, None) or (known(deciding) if deciding else None)
    return (*([first] if first else []), *named.values())


def wilson(right: float, total: int) -> float:
    """Half the width of the Wilson interval at 95 % of a part (0..1) ``right`` of ``total`` (Wilson 1927)."""
    z, p = 1.96, right / total
    return z / (1 + z * z / total) * math.sqrt(p * (1 - p) / total + z * z / (4 * total * total))
