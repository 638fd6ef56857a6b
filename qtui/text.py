"""Figures as a person reads them: pure functions from values to text."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

# What is from outside is made safe in one place; whoever shows figures has it from here too.
from engine.plain_text import one_line as one_line
from engine.plain_text import plain as plain
from engine.report.steadiness import ABOUT, unsteady
from engine.tasks.metrics import ACCURACY, Metric, MetricValue, known

if TYPE_CHECKING:
    from engine.events.event import EpochFinished, Progress
    from engine.runs.rundir import RunSummary


_BLOCKS = re.compile(r"^[^\d]*\.(?=\d+\.)")


def metric(name: str | Metric, value: float) -> str:
    """A figure in its metric's unit: ``98.33 %`` for an accuracy, ``23.41`` for a perplexity, four digits of one that is not known."""
    return known(name).shown(value)


def bare(name: str | Metric, value: float) -> str:
    """``metric`` without its unit."""
    return known(name).bare(value)


def half_width(name: str | Metric, interval: float | None, fine: bool = False) -> str:
    """`` ±0.8`` of an accuracy's interval, in the unit of ``metric``; empty where there is none to be told."""
    found = known(name)
    if interval is None or (not interval and found.name not in ("accuracy", "perplexity")):
        return ""
    return f" {found.half_width(interval, fine)}"


def named(found: str | Metric) -> str:
    """The metric's name before its value; empty for an accuracy, which per cent alone mean."""
    name = known(found).name
    return "" if name == "accuracy" else f"{name} "


def titled(found: str | Metric, value: float) -> str:
    """``98.33 %``, ``MAE 46.57``."""
    return f"{named(found)}{metric(found, value)}"


def worse(found: str | Metric, by: float) -> str:
    """What a drop of a metric may be: ``MAE at most 0.5 % higher``, ``mIoU at most 0.5 points lower``."""
    measure = known(found)
    side = "lower" if measure.higher_is_better else "higher"
    if measure.relative or measure.unit == "%":
        return f"{measure.name} at most {100 * by:g} {'%' if measure.relative else 'points'} {side}"
    return f"{measure.name} at most {tidy(by)} worse"


def summary(value: float, name: str | Metric | None = None) -> str:
    """The figure of a run's summary; one of an earlier version does not name its metric: a perplexity is never below 1."""
    return metric(name or ("accuracy" if value <= 1 else "perplexity"), value)


def metric_of_run(run: RunSummary) -> Metric | None:
    """What the figures of a run's summary are of; None where it does not say."""
    measure, name = getattr(run, "measure", None), getattr(run, "metric", None)
    return Metric.from_dict(measure) if measure and measure.get("name") else known(name) if name else None


def summaries(name: str | Metric | None, before: float, after: float) -> str:
    """``98.61 → 98.33 %``, or with the metric's name ``MAE 46.57 → 46.36``; a perplexity is known by its looks."""
    old, new = summary(before, name), summary(after, name)
    unit = f" {new.rpartition(' ')[2]}" if " " in new else ""
    word = named(name) if name is not None and known(name).name != "perplexity" else ""
    return f"{word}{old.removesuffix(unit) if unit else old} → {new}"


def spaced(said: str) -> str:
    """The engine's ``99.72%`` with the space that figures have on screens."""
    return re.sub(r"(?<=\d)%", " %", said)


_SPEED = re.compile(r"[^;:,]+ at batch 1, [^;,.]+(?:\.\d[^;,.]*)? at batch \d+( on the processor)?")


def claimed(found: Mapping[str, Any], forms: Mapping[str, Mapping[str, Any]] | None = None) -> str:
    """A verdict's sentence; where the times of ``forms`` are not steady without what it says of speed."""
    said = one_line(found.get("text") or "")
    if not any(unsteady(form) for form in (forms or {}).values()):
        return said
    return _SPEED.sub(" its times are not steady, so no speed is claimed", said).replace("; neither smaller nor faster than fp32 here", "")


def verdict(found: Mapping[str, Any], forms: Mapping[str, Mapping[str, Any]] | None = None) -> str:
    """The same below a title that says the threshold in words: without the spelling that recipes have for it."""
    said = re.sub(r" ?Threshold \S+ is met\.", "", claimed(found, forms))
    return spaced(re.sub(r"threshold \S+ is not met", "the threshold is not met", said))


def size(count: float) -> str:
    return f"{count / 1e6:.2f} MB" if count >= 10_000 else f"{count / 1e3:.2f} kB"


def part(done: float, total: float) -> str:
    """How far something has come, rounded down: only what is done is at 100 %."""
    return f"{min(int(100 * max(done, 0) / total), 100)} %"


def seconds(value: float) -> str:
    if value < 60:
        return f"{value:.2f} s" if value < 1 else f"{value:.1f} s"
    minutes, rest = divmod(round(value), 60)
    return f"{minutes} min {rest:02d} s"


def rate(value: float, unit: str) -> str:
    """``2,140 img/s``; what takes seconds is told by one: ``26 s each``."""
    if 0 < value < 0.5:
        return f"{1 / value:,.0f} s each"
    return f"{value:,.0f} {unit}/s" if value >= 10 else f"{value:.1f} {unit}/s"


def small(value: float) -> str:
    """A small number in two digits: ``1.8e-2``."""
    return exponent(f"{value:.1e}")


def tidy(value: float, form: str = "g") -> str:
    """A figure of any size: ``0.02``, ``1e-5``."""
    return exponent(f"{value:{form}}")


def exponent(said: str) -> str:
    """The one way to write an exponent: ``1.3e-5``, not ``1.3e-05``."""
    return re.sub(r"e([-+])0+(?=\d)", r"e\1", said).replace("e+", "e")


def left(value: float) -> str:
    """Time left: whole seconds, for it is a guess."""
    return f"{seconds(value) if value >= 60 else f'{value:.0f} s'} left"


def pace(event: Progress) -> str:
    """What stands behind a bar: rate and time left, as far as they can be told."""
    parts = [rate(event.rate, event.unit)] if event.rate is not None else []
    if event.eta is not None and event.done < event.total:
        parts.append(left(event.eta))
    return ", ".join(parts)


def epoch(event: EpochFinished, name: str | Metric) -> list[str]:
    """The columns of an epoch's line."""
    width = len(str(event.epochs))
    cells = [f"epoch {event.epoch:>{width}}/{event.epochs}", f"loss {event.loss:.4f}", f"validation {metric(name, event.value):>8}"]
    return [*cells, f"lr {tidy(event.lr, '.2g'):<7}", "best"] if event.best else [*cells, f"lr {tidy(event.lr, '.2g')}"]


def figures(found: Mapping[str, Any], name: str | Metric, further: Sequence[tuple[Metric, MetricValue]] = ()) -> list[str]:
    """The columns of a measured line; any figure may be absent. ``further`` are the task's other metrics."""
    deciding = known(name)
    error, latency, speed = (found.get(key) or {} for key in ("error", "latency_ms", "tokens_per_second"))
    shown: tuple[tuple[Any, Callable[[Any], str]], ...] = (
        (found.get("value"), lambda v: f"{deciding.name} {deciding.shown(v)}"),
        *((value, lambda v, of=of: f"{of.name} {of.shown(v.value)}") for of, value in further),
        (error.get("divergence"), lambda v: f"KL {v:.4f}"),
        (None if "divergence" in error else error.get("mse"), lambda v: f"error {small(v)}"),
        (None if deciding.name == "SQNR" else error.get("sqnr_db"), lambda v: f"SQNR {v:.1f} dB"),
        (error.get("agreement"), lambda v: f"agreement {metric(ACCURACY, v)}"),
        (found.get("size_bytes"), size),
        (found.get("to_fp16"), lambda v: f"{v:.3f} of fp16"),
        (None if speed else latency.get("p50"), lambda v: f"p50 {ABOUT if unsteady(found) else ''}{v:.2f} ms"),
        (speed.get("decode"), lambda v: f"writes {v:,.0f} tok/s"),
        (speed.get("prefill"), lambda v: f"reads {v:,.0f} tok/s"),
        (found.get("kernel"), str),
    )
    cells = [text(value) for value, text in shown if value is not None]
    return [*cells, "simulated"] if found.get("simulated") else cells


def kernels(label: Any) -> str:
    """``onednn qconv + qlinear`` for a list of kernel names."""
    parts = [part.strip() for part in str(label or "").split(", ")]
    if not all("." in part and " " not in part for part in parts):
        return str(label or "")
    by: dict[str, list[str]] = {}
    for part in parts:
        library, _, name = part.partition(".")
        short = name.replace("_pointwise", "").replace("2d.binary", " + sum").replace(".binary", " + sum")
        if short not in by.setdefault(library, []):
            by[library].append(short)
    return ", ".join(f"{library} {', '.join(names)}" for library, names in by.items())


def in_block(path: str) -> str:
    """A decoder's layer without what all paths have in common: ``11.attn.c_proj`` for ``transformer.h.11.attn.c_proj``, and ``wte``
    for ``transformer.wte``."""
    return _BLOCKS.sub("", path) if any(map(str.isdigit, path)) else path.rpartition(".")[2]


def count(number: int) -> str:
    """``545 k``, ``11.7 M``."""
    if number >= 1e6:
        return f"{number / 1e6:.1f} M"
    return f"{number / 1e3:.0f} k" if number >= 1e4 else f"{number:,}"
