"""Runs side by side: table, chart points, sentences. Pure functions."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from pathlib import Path

from engine.report.runtimes import IMAGES, TEXT
from engine.report.steadiness import ABOUT
from engine.tasks.metrics import Metric, known
from qtui.drawing.rows import Cell, Column, Row
from qtui.drawing.scatter import Point
from qtui.drawing.scatter import pareto as front
from qtui.runs import Form, Past, PastRun
from qtui.screens.report_rows import megabytes, quality, shown
from qtui.subject import short_name

AXES = (("size", "size in MB"), ("single", "p50 in ms, batch 1"), ("batched", "p50 in ms, batch 64"))
CURSOR, THIS, FP32 = "◆", "▸", "□"


def axis_words(axis: str, metric: str) -> str:
    """What an axis measures: a language model is timed at a token and at a prompt."""
    of_text = {"single": "ms a token", "batched": "ms a prompt"}
    return of_text.get(axis, dict(AXES)[axis]) if metric == "perplexity" else dict(AXES)[axis]


def same_task(runs: Sequence[PastRun], model: str, data: str) -> tuple[PastRun, ...]:
    return tuple(run for run in runs if (run.model, run.data) == (model, data))


def cost(form: Form, axis: str) -> float | None:
    """What a form costs on an axis; a simulated form has no speed, and times that were not steady are held against none."""
    if axis == "size":
        return None if form.size_bytes is None else form.size_bytes / 1e6
    return None if form.simulated or not form.steady else form.single if axis == "single" else form.batched


def point(run: PastRun, axis: str, marker: str = "", label: str = "", role: str = "") -> Point | None:
    return _point(run.quantized, axis, run.measured, marker, label, role)


def _point(form: Form, axis: str, metric: Metric, marker: str, label: str, role: str) -> Point | None:
    x, y = cost(form, axis), form.value
    if x is None or y is None:
        return None
    # Where less is better, as of a perplexity, the chart's better is up all the same.
    return Point(x, metric.scale * metric.rank(y), label, role, marker)


def points(runs: Sequence[PastRun], axis: str, here: Path, cursor: str) -> list[Point]:
    """The runs on the chart, and fp32 to compare them with; the run under the cursor is drawn last."""
    found: list[Point | None] = []
    about = next((run for run in runs if is_here(run, here)), runs[0] if runs else None)
    if about is not None:
        found.append(_point(about.baseline, axis, about.measured, FP32, "fp32", "base"))
    last = None
    for run in runs:
        if key(run) == cursor:
            last = point(run, axis, CURSOR, strategy(run), "title")
        else:
            found.append(point(run, axis, THIS if is_here(run, here) else "", "this run" if is_here(run, here) else "", "dim"))
    return [one for one in (*found, last) if one is not None]


def unbeaten(runs: Sequence[PastRun], axis: str) -> frozenset[str]:
    """The keys of the runs that no other run beats in both quality and cost."""
    placed = [(key(run), point(run, axis)) for run in runs]
    best = set(front(one for _, one in placed if one is not None))
    return frozenset(name for name, one in placed if one in best)


_MIXED = ("value", "ms ×1/token", "ms ×64/prompt")


def columns(
    axis: str, metrics: Collection[str | Metric] = ("accuracy",), all_tasks: bool = False, heads: tuple[str, str] | None = None
) -> tuple[Column, ...]:
    """``metrics`` are those of the runs that are shown; ``all_tasks`` is whether they are of several models or data. ``heads`` says
    what their latencies are of, where that is the same for all."""
    value, first, second = _MIXED
    if len(set(metrics)) == 1:
        metric = known(next(iter(metrics)))
        value, (first, second) = metric.head, (f"ms {head}" for head in heads or (TEXT if metric.name == "perplexity" else IMAGES).short)
    chosen = {"size": 0, "single": 0, "batched": 0, axis: 10}
    return (
        Column("run", "run", priority=9),
        *((Column("task", "model · data", min=18, priority=12),) if all_tasks else ()),
        Column("strategy", "strategy", min=8, grow=1, cut="end", priority=13),
        Column("chosen", "chosen", priority=6),
        Column("value", value, align="right", priority=20),
        Column("size", "size MB", align="right", priority=5 + chosen["size"]),
        Column("single", first, align="right", priority=3 + chosen["single"]),
        Column("batched", second, align="right", priority=4 + chosen["batched"]),
    )


def comparable(runs: Sequence[PastRun], run: PastRun) -> tuple[PastRun, ...]:
    """Those of the same model, data and metric as ``run``."""
    return tuple(one for one in runs if _task(one) == _task(run))


def _task(run: PastRun) -> tuple[str, str, Metric]:
    return run.model, run.data, run.measured


def rows(runs: Sequence[PastRun], axis: str, all_tasks: bool, here: Path, marked: Collection[str] = ()) -> tuple[Row, ...]:
    """One row a run; those of ``marked`` keys stand out. What no other run of its model and data beats is so among those."""
    tasks: dict[tuple[str, str, Metric], list[PastRun]] = {}
    for run in runs:
        tasks.setdefault(_task(run), []).append(run)
    best = frozenset().union(*(unbeaten(several, axis) for several in tasks.values()))
    found = (_row(run, axis, all_tasks, is_here(run, here), key(run) in best) for run in runs)
    return tuple(replace(row, marked=row.key in marked) for row in found)


def _row(run: PastRun, axis: str, all_tasks: bool, here: bool, best: bool) -> Row:
    form = run.quantized
    pace = "simulated" if form.simulated else None
    task = (f"{short_name(run.model)} · {short_name(run.data)}",) if all_tasks else ()
    return Row(
        key(run),
        (
            when(run),
            *task,
            Cell(strategy(run), ""),
            Cell(run.chosen.upper() if run.chosen != "fp32" else "fp32 ✗", "harm" if run.chosen == "fp32" else ""),
            _quality(run, all_tasks),
            Cell(megabytes(form.size_bytes), "accent" if best and axis == "size" else ""),
            *(
                Cell(
                    pace or milliseconds(form, time),
                    "change" if pace else "dim" if not form.steady else "accent" if best and axis == name else "",
                )
                for name, time in (("single", form.single), ("batched", form.batched))
            ),
        ),
        role="title" if here else "",
        glyph=THIS if here else "●" if best else "○",
    )


def milliseconds(form: Form, time: float | None) -> str:
    """``3.83``, ``~3.83`` where it was not steady."""
    said = shown(time, "{:.2f}")
    return f"{ABOUT}{said}" if said and not form.steady else said


def _quality(run: PastRun, all_tasks: bool) -> str:
    """In a column of figures of several metrics each says its own."""
    found = quality(run.measured, run.quantized.value, run.quantized.interval)
    if not all_tasks:
        return found
    return f"{run.measured.name} {found}" if run.measured.unit != "%" else f"{found} {run.measured.name}"


def is_here(run: PastRun, here: Path) -> bool:
    return run.directory == here or run.directory.absolute() == here.absolute()


def y_format(metric: str | Metric) -> Callable[[float], str]:
    """The chart's figures of quality: what is less when better stands on it with its sign changed."""
    found = known(metric)
    return lambda y: found.shown(found.rank(y) / found.scale)


def key(run: PastRun) -> str:
    return str(run.directory)


def when(run: PastRun) -> str:
    """``11-23 18:34``, or the folder's name where the start is not known."""
    return run.started[5:16].replace("T", " ") or run.directory.name


def strategy(run: PastRun) -> str:
    """``w4a4 + 2 rules, QAT, folded last``."""
    parts = run.preset or "?"
    if run.rules:
        parts += f" + {run.rules} rule{'s' if run.rules != 1 else ''}"
    if run.trained:
        parts += ", QAT" if run.form == "qat" else ", QAT not kept"
    return f"{parts}, folded last" if run.folded_after else parts


def title(past: Past, shown_runs: Sequence[PastRun], all_tasks: bool, model: str, data: str) -> str:
    about = "all models and data" if all_tasks else f"{short_name(model)} · {short_name(data)}"
    notes = [f"{past.unreadable} unreadable"] if past.unreadable else []
    notes += [f"{past.left_out} older left out"] if past.left_out else []
    return " ─ ".join([f"Runs ─ {len(shown_runs)}", about, *notes])


def sentence(run: PastRun, runs: Sequence[PastRun], axis: str, here: Path) -> str:
    """Where a run stands among the others."""
    form = run.quantized
    about = "This run" if is_here(run, here) else run.directory.name
    about += f" ({strategy(run)}, misses its threshold)" if run.chosen == "fp32" else f" ({strategy(run)})"
    if cost(form, axis) is None or form.value is None:
        why = "its figures are missing"
        if axis != "size" and (form.simulated or not form.steady):
            why = "its kernels are simulated, so it has no speed" if form.simulated else "the machine was too busy for steady times"
        return f"{about} is not on the chart: {why}."
    better = "smaller" if axis == "size" else "faster"
    beaten = key(run) not in unbeaten(runs, axis)
    where = f"another run is as good or better, and {better}" if beaten else f"no other run is as good and {better}"
    end = "" if is_here(run, here) else " ⏎ opens it."
    return f"{about}: {where}.{end}"
