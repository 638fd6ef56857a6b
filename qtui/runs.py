"""Finished runs as their reports tell them, for comparing. Torch-free; a report that did not change is not read again."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.reading import read_bytes
from engine.report.measures import metrics_of
from engine.report.runtimes import paces
from engine.report.steadiness import unsteady
from engine.tasks.metrics import Metric, known

if TYPE_CHECKING:
    from engine.runs.rundir import RunSummary

MOST = 200
_RECIPE_BYTES = 1_000_000


@dataclass(frozen=True)
class Form:
    """One form of a model: what it is worth and what it costs; times are p50 in milliseconds. None was not measured. ``steady`` is
    whether the machine was quiet enough for its times to be held against others."""

    value: float | None = None
    interval: float | None = None
    size_bytes: float | None = None
    single: float | None = None
    batched: float | None = None
    simulated: bool = False
    steady: bool = True


@dataclass(frozen=True)
class PastRun:
    """``quantized`` is the better quantized form, also where the verdict is to keep fp32 (``chosen`` is then ``fp32``).
    ``preset`` is empty and ``rules`` None where the recipe cannot be read. ``trained`` is whether QAT ran, ``folded_after``
    whether normalization was folded at conversion alone. ``measure`` is the metric as the report says it, ``heads`` what its two
    latencies are of; None where it does not say."""

    directory: Path
    started: str
    model: str
    data: str
    chosen: str
    form: str
    metric: str
    baseline: Form
    quantized: Form
    preset: str = ""
    rules: int | None = None
    trained: bool = False
    folded_after: bool = False
    measure: Metric | None = None
    heads: tuple[str, str] | None = None

    @property
    def measured(self) -> Metric:
        """What ``metric`` names, with its unit."""
        return self.measure or known(self.metric)


@dataclass(frozen=True)
class Past:
    """``unreadable`` counts finished runs whose report cannot be read, ``left_out`` the oldest beyond the newest 200."""

    runs: tuple[PastRun, ...] = ()
    unreadable: int = 0
    left_out: int = 0


_read: dict[Path, tuple[int, PastRun | None]] = {}


def past(listed: Sequence[RunSummary], also: Path | None = None) -> Past:
    """The finished ones of ``listed`` (newest first); ``also`` is a run's folder outside of it."""
    places = [(run.directory, run.started) for run in listed if run.state == "finished"]
    if also is not None and not any(_same(also, place) for place, _ in places):
        places.insert(0, (also, ""))
    kept = places[:MOST]
    found = [_past(place, started) for place, started in kept]
    runs = tuple(run for run in found if run is not None)
    return Past(runs, len(found) - len(runs), len(places) - len(kept))


def _same(a: Path, b: Path) -> bool:
    return a == b or a.absolute() == b.absolute()


def _past(directory: Path, started: str) -> PastRun | None:
    path = directory / "report.json"
    try:
        changed = path.stat().st_mtime_ns
    except OSError:
        return None
    started = started or time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(changed / 1e9))
    known = _read.get(path)
    if known is None or known[0] != changed:
        if len(_read) > 4 * MOST:
            _read.clear()
        known = _read[path] = (changed, _load(directory, started))
    return known[1]


def _load(directory: Path, started: str) -> PastRun | None:
    from engine.errors import EngineError
    from engine.report.report import Report

    try:
        report = Report.load(directory).data
        return _told(directory, started, report)
    except (EngineError, AttributeError, TypeError, ValueError, RecursionError, OverflowError):
        return None


def _told(directory: Path, started: str, report: Mapping[str, Any]) -> PastRun:
    form = "qat" if (report["qat"] or {}).get("kept") else "ptq"
    preset, rules = _strategy(directory / "recipe.yaml")
    after = (report["graph"] or {}).get("order") == "quantize-first"
    chosen = str(report["verdict"].get("chosen") or "")
    return PastRun(
        directory=directory,
        started=started,
        model=str(report["model"]),
        data=str(report["data"].get("name") or ""),
        chosen=chosen,
        form=form,
        metric=str(report["baseline"].get("metric") or "accuracy"),
        baseline=_form(report["baseline"]),
        quantized=_form(report[form] or {}),
        preset=preset,
        rules=rules,
        trained=bool(report["qat"]),
        folded_after=after,
        measure=metrics_of(report)[0],
        heads=paces(report).short,
    )


def _form(found: Mapping[str, Any]) -> Form:
    return Form(
        _number(found.get("value")), _number(found.get("interval")), _number(found.get("size_bytes")),
        _number((found.get("latency_ms") or {}).get("p50")), _number((found.get("latency_batched_ms") or {}).get("p50")),
        bool(found.get("simulated")), not unsteady(found),
    )  # fmt: skip


def _number(value: Any) -> float | None:
    usable = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if usable else None


def _strategy(path: Path) -> tuple[str, int | None]:
    """Preset and number of rules of a recipe."""
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        content = yaml.load(read_bytes(path, _RECIPE_BYTES), Loader=loader)
        # An alias can stand for a text without end: only text is taken for text.
        preset, rules = content.get("preset") or "", content.get("rules") or ()
        return preset if isinstance(preset, str) else "", len(rules) if isinstance(rules, list) else None
    except (OSError, yaml.YAMLError, AttributeError, TypeError, ValueError, RecursionError):
        return "", None
