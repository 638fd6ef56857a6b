"""What was measured, as the calibration's screen says it: verdict, layers by harm, and whether to train. Pure functions."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping
from typing import Any, Literal

from qtui import text
from qtui.drawing.rows import Cell, Column, Row
from qtui.drawing.spans import Line
from qtui.state import Run, State

Figures = Mapping[str, Any]
Order = Literal["harm", "graph"]

COLUMNS = (
    Column("layer", "layer", min=9, grow=1, priority=9),
    Column("as", "runs as", min=10, priority=4, cut="end"),
    Column("on", "on", min=8, priority=3, cut="end"),
    Column("own", "own SQNR dB", align="right", priority=8),
    Column("sqnr", "SQNR dB", align="right", priority=7),
    Column("params", "params %", align="right", priority=6),
    Column("time", "time %", align="right", priority=5),
)
EMPTY = "No layer figures are kept of this run.\nA run started here measures each layer: 1, then n."
NOT_MEASURED = "Nothing is measured yet: that comes after the calibration."
HARMFUL_DB = 20.0
"""Below this the noise of a layer alone is over a tenth of its signal's amplitude."""


def number(value: object) -> float | None:
    """A figure; None where there is none, or none that is finite."""
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def form(run: Run) -> Literal["ptq", "qat"]:
    """The form whose layers can be shown: PTQ's, or only QAT's where a past run kept no others."""
    return "qat" if "ptq" not in run.layers and "qat" in run.layers else "ptq"


def judgement(run: Run) -> Figures:
    """The verdict on PTQ; the report's where PTQ was not judged by itself and nothing was trained. May be empty."""
    if found := run.judged.get("ptq"):
        return found
    report = run.report or {}
    return {} if report.get("qat") else report.get("verdict") or {}


def facts(run: Run) -> tuple[str, ...]:
    """The measured figures before and after, each with its unit."""
    before, after = run.measured.get("baseline") or {}, run.measured.get("ptq") or {}
    if not after:
        return ()
    metric = str(before.get("metric", "accuracy"))
    error = after.get("error") or {}
    found = [_value(metric, before, after)]
    if (mse := number(error.get("mse"))) is not None:
        found.append(f"error {mse:.1e}".replace("e-0", "e-"))
    if (sqnr := number(error.get("sqnr_db"))) is not None:
        found.append(f"SQNR {sqnr:.1f} dB")
    if (agreement := number(error.get("agreement"))) is not None:
        found.append(f"agreement {text.metric('accuracy', agreement)}")
    if (size := number(after.get("size_bytes"))) is not None:
        found.append(_pair(number(before.get("size_bytes")), size, text.size))
    found.append(_latency(before, after))
    return tuple(fact for fact in found if fact)


def _value(metric: str, before: Figures, after: Figures) -> str:
    value = number(after.get("value"))
    if value is None:
        return ""
    # The metric stands in its own column of figures: what is not an accuracy says what it is.
    name = "" if metric == "accuracy" else f"{metric} "
    interval = number(after.get("interval"))
    spread = "" if interval is None else f" (±{100 * interval:.1f})" if metric == "accuracy" else f" (±{interval:.2f})"
    return f"{name}{_pair(number(before.get('value')), value, lambda v: text.metric(metric, v))}{spread}"


def _pair(before: float | None, after: float, show: Any) -> str:
    new = show(after)
    if before is None:
        return str(new)
    old, unit = show(before), new.rpartition(" ")[2]
    return f"{old.removesuffix(f' {unit}')} → {new}"


def _latency(before: Figures, after: Figures) -> str:
    for key in ("latency_batched_ms", "latency_ms"):
        now = after.get(key) or {}
        p50 = number(now.get("p50"))
        if p50 is None:
            continue
        was = number((before.get(key) or {}).get("p50"))
        speed = _pair(was, p50, lambda v: f"{v:.2f} ms")
        kernel = "simulated" if after.get("simulated") else f"on {after['kernel']}" if after.get("kernel") else ""
        return f"{speed} at batch {now.get('batch', 1)} {kernel}".rstrip()
    return ""


def measured(run: Run) -> bool:
    """Whether the quantized model has figures to show."""
    return bool(run.layers or run.measured.get("ptq"))


def verdict_lines(state: State, width: int, short: bool = False) -> list[Line]:
    """The figures, then the verdict's sentence, then the question; ``short`` leaves the sentence out while one is asked."""
    run = state.run
    _, role = headline(run)
    lines: list[Line] = [[(line, role or "title")] for line in packed(facts(run), width)]
    asked, asked_role = question(state)
    told = text.one_line(judgement(run).get("text", ""))
    if told and not (short and (asked or len(lines) > 1)):
        lines += [[(line, "")] for line in textwrap.wrap(told, max(width, 1))]
    if asked:
        lines += [[(line, asked_role)] for line in textwrap.wrap(asked, max(width, 1))]
    return lines or [[("The figures of the quantized model come with the measurement.", "dim")]]


def packed(parts: tuple[str, ...], width: int, gap: str = "   ") -> tuple[str, ...]:
    """The facts on as few lines of ``width`` cells as they take; none is broken, one too long is cut."""
    lines: list[str] = []
    for part in parts:
        if lines and len(lines[-1]) + len(gap) + len(part) <= width:
            lines[-1] += gap + part
        else:
            lines.append(part)
    return tuple(line if len(line) <= width else f"{line[: max(width - 1, 0)]}…" for line in lines)


_LIMITS = {
    "drop": lambda v: f"a drop of at most {100 * v:g} points",
    "mse": lambda v: f"an error of at most {v:g}",
    "sqnr": lambda v: f"an SQNR of at least {v:g} dB",
    "agreement": lambda v: f"an agreement of at least {100 * v:g} %",
}


def limit(threshold: str) -> str:
    """``drop:0.005`` as words."""
    name, _, value = threshold.partition(":")
    try:
        return _LIMITS[name](float(value))
    except (KeyError, ValueError):
        return threshold


def headline(run: Run) -> tuple[str, str]:
    """The threshold and whether it is met, with the glyph; and the role of both."""
    verdict = judgement(run)
    if not verdict:
        return ("measured", "") if run.measured.get("ptq") else ("", "")
    wanted = limit(str(verdict.get("threshold", "")))
    return (f"● met: {wanted}", "good") if verdict.get("met") else (f"✗ not met: {wanted}", "harm")


def reason(run: Run) -> str:
    """How far the measured figure is from the threshold, as the beginning of a sentence."""
    verdict = judgement(run)
    name, _, value = str(verdict.get("threshold", "")).partition(":")
    before, after = run.measured.get("baseline") or {}, run.measured.get("ptq") or {}
    error = after.get("error") or {}
    bound = number(float(value)) if value.replace(".", "").replace("e-", "").isdigit() else None
    met = bool(verdict.get("met"))
    if bound is None:
        return ""
    if name == "drop":
        now, was = number(after.get("value")), number(before.get("value"))
        if now is None or was is None:
            return ""
        drop = 100 * (was - now)
        if drop < 0.005:
            return "There is no drop" if drop > -0.005 else f"It gained {-drop:.2f} points"
        return f"The drop of {drop:.2f} points is {_side(met, 'under', 'over', drop, 100 * bound)} the threshold of {100 * bound:g}"
    shown: dict[str, tuple[str, float, str, str, str, str]] = {
        "mse": ("error", 1.0, ".1e", "", "under", "over"),
        "sqnr": ("SQNR", 1.0, ".1f", " dB", "over", "under"),
        "agreement": ("agreement", 100.0, ".2f", " %", "over", "under"),
    }
    found = number(error.get("sqnr_db" if name == "sqnr" else name))
    if name not in shown or found is None:
        return ""
    word, scale, form, unit, good, bad = shown[name]
    value_text = f"{scale * found:{form}}".replace("e-0", "e-")
    return f"The {word} of {value_text}{unit} is {_side(met, good, bad, found, bound)} the threshold of {scale * bound:g}{unit}"


def _side(met: bool, good: str, bad: str, found: float, bound: float) -> str:
    """The threshold must hold on validation too: figures of the test split alone may be on its good side."""
    if met:
        return "at" if math.isclose(found, bound, rel_tol=1e-3) else good
    on_good = found <= bound if good == "under" else found >= bound
    return f"{good} (on test)" if on_good else bad


def question(state: State) -> tuple[str, str]:
    """Whether to train, with what each key does; and its role. Empty where that is not open."""
    if state.asking != "qat":
        return "", ""
    why = reason(state.run)
    epochs = asked_epochs(state.run)
    much = f"{epochs} epoch{'' if epochs == 1 else 's'}" if epochs else "some epochs"
    recommended = state.job is not None and state.job.default
    if recommended:
        start = f"{why}: " if why else "The threshold is not met: "
        return f"{start}t trains for {much}, n goes on without.", "change"
    start = f"{why}: " if why else "The threshold is met: "
    return f"{start}training is not needed. n makes the report, t trains anyway.", "good"


def asked_epochs(run: Run) -> int:
    """The epochs of the run's recipe; 0 where it does not say."""
    found = (run.recipe.get("qat") or {}).get("epochs")
    return found if isinstance(found, int) else 0


def wrong_epochs(value: str) -> str | None:
    """What is wrong with a number of epochs that a person typed."""
    if not value.isascii() or not value.isdigit():
        return "A whole number is needed, such as 5"
    return None if 1 <= int(value) <= 1000 else "From 1 to 1000 epochs"


def rows(run: Run, order: Order) -> tuple[Row, ...]:
    """The layers: most harm first, which is the lowest SQNR of a layer's own noise, or as in the graph."""
    found = run.layers.get(form(run), ())
    total = sum(int(number(row.get("params")) or 0) for row in found)
    ordered = sorted(found, key=_harm) if order == "harm" else found
    return tuple(_row(row, total) for row in ordered)


def _harm(row: Figures) -> float:
    own, whole = number(row.get("own_sqnr_db")), number(row.get("sqnr_db"))
    return own if own is not None else whole if whole is not None else math.inf


def _row(row: Figures, total: int) -> Row:
    own, params, share = number(row.get("own_sqnr_db")), number(row.get("params")) or 0, number(row.get("time_share"))
    harm = own is not None and own < HARMFUL_DB
    kept = str(row.get("actual")) in ("fp32", "folded")
    cells: tuple[str | Cell, ...] = (
        str(row.get("name", "")), str(row.get("actual", "")).replace(", ", " "), str(row.get("kernel", "")),
        Cell(_db(row.get("own_sqnr_db")), "harm" if harm else ""), _db(row.get("sqnr_db")),
        f"{100 * params / total:.1f}" if total else "", "" if share is None else f"{100 * share:.0f}",
    )  # fmt: skip
    return Row(str(row.get("name", "")), cells, role="dim" if kept else "", glyph="✗" if harm else "–" if kept else "●")


def _db(value: object) -> str:
    found = number(value)
    return "–" if found is None else f"{found:.1f}"


def sentence(run: Run, key: str | None) -> str:
    """About the layer under the cursor."""
    found = run.layers.get(form(run), ())
    row = next((row for row in found if row.get("name") == key), None)
    if row is None:
        return NOT_MEASURED if not run.measured.get("ptq") else "Of this run only the figures of the whole model are kept."
    name, own, whole = text.one_line(row["name"]), number(row.get("own_sqnr_db")), number(row.get("sqnr_db"))
    if row.get("actual") == "folded":
        return f"{name} is folded into the layer before it: it costs nothing any more."
    if row.get("actual") == "fp32":
        return f"{name} stays in fp32: {text.one_line(row.get('reason', ''))}."
    if own is None and whole is None:
        return f"{name} runs as {row.get('actual')} on {row.get('kernel')}; how much noise it adds was not measured."
    parts = []
    if own is not None:
        # Signal over noise as amplitudes: 20 dB are a tenth.
        parts.append(f"{name} alone adds noise of {_percent(10 ** (-own / 20))} of its output ({own:.1f} dB)")
    if whole is not None:
        said = f"with what comes from the layers before it, {whole:.1f} dB"
        parts.append(said if own is not None else f"{name} has {whole:.1f} dB at its output, with the noise of the layers before it")
    lowest = min(found, key=_harm)
    if row is lowest and len(found) > 1 and own is not None:
        end = "The most of all: e changes its strategy."
    else:
        end = "Much: e changes its strategy." if own is not None and own < HARMFUL_DB else ""
    return f"{'; '.join(parts)}. {end}".rstrip()


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %" if share >= 0.001 else f"{100 * share:.2f} %"
