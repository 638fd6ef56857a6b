"""What a report's figures are of: its metrics with their units, all values of each form, and what its items are called. Torch-free."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from engine.plain_text import one_line
from engine.report.markdown import table
from engine.tasks.metrics import Metric, MetricValue, measures

FORMS = (("fp32", "baseline", "fp32"), ("ptq", "ptq", "PTQ"), ("qat", "qat", "QAT"))
"""The key of ``metrics``, the key of the figures, and the name of each form."""
_LONGEST = 24


def metrics_of(report: Mapping[str, Any]) -> tuple[Metric, ...]:
    """The metrics of a report, the one that decides first; of an earlier version's report that one alone."""
    return measures(report.get("measures"), one_line((report.get("baseline") or {}).get("metric") or "accuracy", 40))


def values_of(row: Any) -> dict[str, MetricValue]:
    """A form's metrics by name, of one of the report's ``metrics``; what is no finite number is passed over."""
    found = {}
    for name, value in row.items() if isinstance(row, Mapping) else ():
        value, low, high = (_finite(value, key) for key in ("value", "low", "high"))
        if value is not None:
            found[str(name)] = MetricValue(value, low, high)
    return found


def item_of(report: Mapping[str, Any]) -> tuple[str, str]:
    """What the items of a report are, as one and as many."""
    found = report.get("items")
    item, plural = (one_line(found.get(key) or "", _LONGEST) if isinstance(found, Mapping) else "" for key in ("item", "plural"))
    return item or "image", plural or "images"


def all_metrics(report: Mapping[str, Any]) -> list[str]:
    """A Markdown table of all metrics with their intervals, where there are more than the one that decides."""
    metrics = metrics_of(report)
    told = report.get("metrics")
    forms = [(name, values_of(told.get(key)) if isinstance(told, Mapping) else {}) for key, _, name in FORMS]
    forms = [(name, values) for name, values in forms if values]
    if len(metrics) < 2 or not forms:
        return []
    rows = [(metric.name, *(interval(metric, values.get(metric.name)) for _, values in forms), _better(metric)) for metric in metrics]
    header = ("metric, with its 95 % interval", *(name for name, _ in forms), "better is")
    return ["", *table(header, rows)]


def interval(metric: Metric, value: MetricValue | None) -> str:
    """``46.57 (39.18 to 53.17)``; empty where nothing was measured."""
    if value is None:
        return ""
    if value.low is None or value.high is None:
        return metric.shown(value.value)
    return f"{metric.shown(value.value)} ({metric.bare(value.low)} to {metric.bare(value.high)})"


def _better(metric: Metric) -> str:
    return "more" if metric.higher_is_better else "less"


def _finite(row: Any, key: str) -> float | None:
    found = row.get(key) if isinstance(row, Mapping) else None
    if not isinstance(found, int | float) or isinstance(found, bool) or not math.isfinite(found):
        return None
    return float(found)
