"""The tables of the report: the forms of the model side by side, and its layers. Pure functions; any figure may be missing."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from engine.report.runtimes import paces
from engine.report.steadiness import ABOUT, unsteady
from engine.tasks.metrics import Metric, MetricValue
from qtui import text
from qtui.drawing.rows import Cell, Column, Row
from qtui.spec_words import respelled
from qtui.state import Run

FORMS = (("baseline", "fp32"), ("ptq", "PTQ"), ("qat", "QAT"))
_MEDIUM, _WIDE = 60, 100
Layer = Mapping[str, Any]


def number(found: Any, *keys: str) -> float | None:
    """The finite number at ``keys``, None where there is none."""
    for key in keys:
        found = found.get(key) if isinstance(found, Mapping) else None
    usable = isinstance(found, int | float) and not isinstance(found, bool) and math.isfinite(found)
    return float(found) if usable else None


def shown(value: float | None, form: str, none: str = "") -> str:
    return none if value is None else form.format(value)


def verdict(run: Run) -> Mapping[str, Any]:
    """The report's verdict; before there is one, what it would be by the last form that was measured."""
    found = (run.report or {}).get("verdict") or run.judged.get("qat") or run.judged.get("ptq")
    return found if isinstance(found, Mapping) else {}


def chosen_form(run: Run) -> str:
    """``baseline``, ``ptq`` or ``qat``; empty while nothing is chosen."""
    chosen = str(verdict(run).get("chosen") or "")
    return "baseline" if chosen == "fp32" else chosen


def exported_form(run: Run) -> str:
    """The better quantized form: the one that the layers and the exported file are of."""
    return "qat" if (run.measured.get("qat") or {}).get("kept") else "ptq"


def figure_columns(run: Run, width: int) -> tuple[Column, ...]:
    """The metric that decides, then the task's others, and what else is measured of a form."""
    wide, (first, second) = width >= _WIDE, pace_heads(run, width >= _WIDE)
    return (
        Column("form", "", priority=20),
        Column("value", run.metric.head, align="right", priority=19),
        *(Column(f"metric-{metric.name}", metric.head, align="right", priority=14 - place) for place, metric in enumerate(others(run))),
        Column("error", "KL" if run.reads_text else "error (mse)" if wide else "mse", align="right", priority=1),
        Column("sqnr", "SQNR dB", align="right", priority=3),
        *((Column("agreement", "agree %", align="right", priority=2),) if _agrees(run) else ()),
        Column("size", "size MB", align="right", priority=18),
        Column("single", first, align="right", priority=16),
        Column("batched", second, align="right", priority=17),
        Column("kernel", "runs on", min=10, grow=1, cut="end", priority=15),
    )


def figure_rows(run: Run) -> tuple[Row, ...]:
    """One row for each form that was measured, the chosen one with a pointer."""
    chosen = chosen_form(run)
    forms = ((key, name, run.measured.get(key)) for key, name in FORMS)
    return tuple(_figures(key, name, found, run, key == chosen) for key, name, found in forms if found)


def others(run: Run) -> tuple[Metric, ...]:
    """The task's metrics beside the one that decides, as far as they were measured."""
    return tuple(metric for metric in run.metrics[1:] if any(metric.name in values for values in run.values.values()))


def pace_heads(run: Run, wide: bool) -> tuple[str, str]:
    """What heads the two columns of speed."""
    if run.reads_text:
        return ("writes tok/s", "reads tok/s") if wide else ("writes/s", "reads/s")
    found = paces(run.report or {})
    first, second = found.heads if wide else found.short
    return (f"p50 ms, {first}", f"p50 ms, {second}") if wide else (f"ms {first}", f"ms {second}")


def _agrees(run: Run) -> bool:
    """Whether equal answers are counted, as far as is known."""
    forms = [found for key, found in run.measured.items() if key != "baseline" and found]
    return not forms or any(number(found, "error", "agreement") is not None for found in forms) or not run.measures


def _figures(key: str, name: str, found: Mapping[str, Any], run: Run, chosen: bool) -> Row:
    simulated = bool(found.get("simulated"))
    odd = not simulated and unsteady(found)
    pace = "dim" if simulated or odd else ""
    kernel, mse = text.kernels(found.get("kernel")), number(found, "error", "mse")
    return Row(
        key,
        (
            Cell(name, "title"),
            quality(run.metric, number(found, "value"), number(found, "interval")),
            *(_further(metric, run.values.get(key, {}).get(metric.name)) for metric in others(run)),
            shown(number(found, "error", "divergence"), "{:.4f}") or ("" if mse is None else text.small(mse)),
            shown(number(found, "error", "sqnr_db"), "{:.1f}"),
            *((percent(number(found, "error", "agreement")),) if _agrees(run) else ()),
            megabytes(number(found, "size_bytes")),
            *(Cell(f"{ABOUT}{speed}" if odd and speed else speed, pace) for speed in speeds(found)),
            Cell("simulated, no speed" if simulated else kernel, "change" if simulated else ""),
        ),
        role="title" if chosen else "",
        glyph="▸" if chosen else " ",
        selectable=False,
    )


def speeds(found: Mapping[str, Any]) -> tuple[str, str]:
    """Milliseconds of one image and of a batch; of a language model tokens a second as it writes and reads."""
    if "tokens_per_second" in found:
        decode, prefill = (number(found, "tokens_per_second", key) for key in ("decode", "prefill"))
        return shown(decode, "{:,.0f}"), shown(prefill, "{:,.0f}")
    single, batched = (number(found, key, "p50") for key in ("latency_ms", "latency_batched_ms"))
    return shown(single, "{:.2f}"), shown(batched, "{:.2f}")


def _further(metric: Metric, value: MetricValue | None) -> str:
    return "" if value is None else quality(metric, value.value, value.interval or None)


def quality(metric: str | Metric, value: float | None, interval: float | None = None) -> str:
    """``99.72 ±0.8`` for an accuracy, without its unit."""
    if value is None:
        return "?"
    return text.bare(metric, value) + text.half_width(metric, interval)


def percent(value: float | None, digits: int = 1) -> str:
    return "" if value is None else f"{100 * value:.{digits}f}"


def megabytes(count: float | None) -> str:
    return "" if count is None else f"{count / 1e6:.2f}" if count >= 10_000 else f"{count / 1e6:.4f}"


LAYER_COLUMNS = (
    Column("layer", "layer", min=10, grow=1, priority=20),
    Column("asked", "asked for", min=10, cut="end", priority=2),
    Column("actual", "runs as", cut="end", priority=19),
    Column("kernel", "on", min=7, cut="end", priority=5),
    Column("own", "own dB", align="right", priority=6),
    Column("sqnr", "SQNR dB", align="right", priority=18),
    Column("params", "params %", align="right", priority=7),
    Column("time", "time %", align="right", priority=8),
)


def layers_of(run: Run) -> tuple[Layer, ...]:
    """The layers of the exported form; what only events told of a layer is added to the report's row."""
    told = {str(row.get("name")): row for row in run.layers.get(exported_form(run), ())}
    found = (run.report or {}).get("layers") or run.layers.get(exported_form(run)) or ()
    rows = [row for row in found if isinstance(row, Mapping)]
    return tuple({**told.get(str(row.get("name")), {}), **row} for row in rows)


def layer_columns(rows: Iterable[Layer], width: int = 80) -> tuple[Column, ...]:
    """Without the columns that would say nothing; what a layer runs as is cut where it is long."""
    rows = tuple(rows)
    without = {
        "asked": not any(differs(row) for row in rows),
        "own": not any(number(row, "own_sqnr_db") is not None for row in rows) or own_alone(rows),
    }
    kept = (column for column in LAYER_COLUMNS if not without.get(column.key))
    least = 12 if width < _MEDIUM else 26
    return tuple(replace(column, min=least) if column.key == "actual" else column for column in kept)


def own_alone(rows: Iterable[Layer]) -> bool:
    """Whether only the noise of each layer itself was measured, as of a language model."""
    return all(row.get("own_sqnr_db") == row.get("sqnr_db") for row in rows)


def layer_rows(rows: Sequence[Layer], by_harm: bool = False, decodes: bool = False) -> tuple[Row, ...]:
    """One row a layer, as in the graph or the one with the most noise of its own first; ``decodes`` is whether it is a language
    model's."""
    total = total_params(rows)
    columns = layer_columns(rows)
    ordered = sorted(enumerate(rows), key=lambda pair: (noise(pair[1]), pair[0])) if by_harm else enumerate(rows)
    return tuple(_layer(f"{index}", row, total, columns, decodes) for index, row in ordered)


def _layer(key: str, row: Layer, total: float, columns: tuple[Column, ...], decodes: bool) -> Row:
    name = str(row.get("name") or "?")
    kind = form(row)
    params, share = number(row, "params"), number(row, "time_share")
    cells: dict[str, str | Cell] = {
        "layer": text.in_block(name) if decodes else name,
        "asked": Cell(respelled(row.get("requested")), "change") if differs(row) else "",
        "actual": Cell("fp32" if kind == "fp32" else respelled(row.get("actual")), "change" if kind == "fp32" else ""),
        "kernel": text.kernels(row.get("kernel")).removeprefix("onednn "),
        "sqnr": shown(number(row, "sqnr_db"), "{:.1f}"),
        "own": shown(number(row, "own_sqnr_db"), "{:.1f}"),
        "params": "" if params is None or not total else f"{100 * params / total:.1f}",
        "time": percent(share),
    }
    role = {"fp32": "change", "folded": "dim"}.get(kind, "")
    return Row(key, tuple(cells[column.key] for column in columns), role=role, glyph=GLYPHS[kind])


GLYPHS = {"integer": "●", "stored": "◐", "fp32": "○", "folded": "·"}


def form(row: Layer) -> str:
    """``integer`` arithmetic, ``stored`` (integer weights, other arithmetic), ``fp32``, or ``folded`` into the layer before."""
    actual, kernel = str(row.get("actual") or ""), str(row.get("kernel") or "")
    if actual == "folded":
        return "folded"
    if actual in ("fp32", ""):
        return "fp32"
    # Where activations stay in floats, so does the arithmetic, whichever kernel reads the integers.
    return "stored" if "fp32 activations" in actual or kernel.startswith(("torch", "simul")) else "integer"


def differs(row: Layer) -> bool:
    asked, actual = row.get("requested"), row.get("actual")
    return bool(asked and actual and actual != "folded" and asked != actual)


def noise(row: Layer) -> float:
    """What orders layers by harm, in dB: the layer's own noise where it was measured, else that of all layers up to it."""
    own = number(row, "own_sqnr_db")
    found = number(row, "sqnr_db") if own is None else own
    return math.inf if found is None else found


def total_params(rows: Iterable[Layer]) -> float:
    return sum(number(row, "params") or 0.0 for row in rows)


def layers_title(rows: Sequence[Layer], by_harm: bool) -> str:
    kinds = [form(row) for row in rows]
    notes = [f"{kinds.count(kind)} {word}" for kind, word in (("fp32", "in fp32"), ("folded", "folded")) if kind in kinds]
    return " ─ ".join([f"Layers ─ {len(rows)}" if rows else "Layers", *notes, *(["most harm first"] if by_harm else [])])
