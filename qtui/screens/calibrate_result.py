"""What was measured, as the calibration's screen says it: figures, verdict, and whether to train. Pure functions."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping
from typing import Any

from engine.report.steadiness import ABOUT, unsteady
from engine.tasks.metrics import ACCURACY, PERPLEXITY, Metric
from qtui import text
from qtui.drawing.spans import Line
from qtui.state import Run, State
from qtui.target_words import aimed

Figures = Mapping[str, Any]


def number(value: object) -> float | None:
    """A figure; None where there is none, or none that is finite."""
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


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
    metric = run.metric
    error = after.get("error") or {}
    found, values = [_value(metric, before, after)], run.values.get("ptq", {})
    found += [f"{more.name} {text.metric(more, values[more.name].value)}" for more in run.metrics[1:] if more.name in values]
    if run.reads_text and (divergence := number(error.get("divergence"))) is not None:
        # How far the next token's distribution moved says more of a language model than its logits do.
        found.append(f"KL {divergence:.4f}")
    elif (mse := number(error.get("mse"))) is not None:
        found.append(f"error {text.small(mse)}")
    if (sqnr := number(error.get("sqnr_db"))) is not None:
        found.append(f"SQNR {sqnr:.1f} dB")
    if (size := number(after.get("size_bytes"))) is not None:
        found.append(_pair(number(before.get("size_bytes")), size, text.size))
    found.append(_latency(before, after))
    agreement = number(error.get("agreement"))
    if agreement is not None and str(judgement(run).get("threshold", "")).startswith("agreement"):
        found.insert(1, f"agreement {text.metric(ACCURACY, agreement)}")
    return tuple(fact for fact in found if fact)


def _value(metric: Metric, before: Figures, after: Figures) -> str:
    value = number(after.get("value"))
    if value is None:
        return ""
    # The metric stands in its own column of figures: what is not an accuracy says what it is.
    name = text.named(metric)
    half = text.half_width(metric, number(after.get("interval")), fine=True).strip()
    spread = f" ({half})" if half else ""
    return f"{name}{_pair(number(before.get('value')), value, lambda v: text.metric(metric, v))}{spread}"


def _pair(before: float | None, after: float, show: Any) -> str:
    new = show(after)
    if before is None:
        return str(new)
    old, unit = show(before), new.rpartition(" ")[2]
    return f"{old.removesuffix(f' {unit}')} → {new}"


def _latency(before: Figures, after: Figures) -> str:
    if speed := after.get("tokens_per_second"):
        earlier = before.get("tokens_per_second") or {}
        parts = [
            f"{word} {_pair(number(earlier.get(key)), found, lambda v: f'{v:,.0f} tok/s')}"
            for word, key in (("writes", "decode"), ("reads", "prefill"))
            if (found := number(speed.get(key))) is not None
        ]
        return "   ".join(parts)
    for key in ("latency_batched_ms", "latency_ms"):
        now = after.get(key) or {}
        p50 = number(now.get("p50"))
        if p50 is None:
            continue
        was = number((before.get(key) or {}).get("p50"))
        odd = unsteady(before) or unsteady(after)
        speed = _pair(was, p50, lambda v, about=ABOUT if odd else "": f"{about}{v:.2f} ms") + (", not steady," if odd else "")
        kernel = "simulated" if after.get("simulated") else f"on {text.kernels(after['kernel'])}" if after.get("kernel") else ""
        return f"{speed} at batch {now.get('batch', 1)} {kernel}".rstrip()
    return ""


def measured(run: Run) -> bool:
    """Whether the quantized model has figures to show."""
    return bool(run.layers or run.measured.get("ptq"))


def verdict_lines(state: State, width: int, height: int) -> list[Line]:
    """The figures, then the verdict's sentence, then the question, in a window of that many rows: the fewer there are, the less
    is said beside the figures that decide."""
    run = state.run
    title, role = headline(run)
    asked, asked_role = question(state, brief=height < 16)
    found = facts(run)
    if height < 16:
        glyph = title[:2] if role else ""
        lines: list[Line] = [[(line, role or "title")] for line in packed((f"{glyph}{found[0]}", *_sizes(found)), width)] if found else []
    else:
        lines = [[(line, role or "title")] for line in packed(found, width)]
    if target := aimed(run.report):
        lines += [[(line, target[1])] for line in textwrap.wrap(target[0], max(width, 1))]
    told = text.verdict(judgement(run), run.measured)
    if told and (height >= 24 or (not asked and height >= 20)) and (width >= 66 or not asked):
        lines += [[(line, "dim")] for line in textwrap.wrap(told, max(width, 1))]
    if asked:
        lines += [[(line, asked_role)] for line in textwrap.wrap(asked, max(width, 1))]
    return lines or [[("The figures of the quantized model come with the measurement.", "dim")]]


def _sizes(found: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(fact for fact in found if fact.endswith(("MB", "kB")))


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
    "mse": lambda v: f"an error of at most {_tidy(v)}",
    "sqnr": lambda v: f"an SQNR of at least {v:g} dB",
    "agreement": lambda v: f"an agreement of at least {100 * v:g} %",
}


def limit(threshold: str, metric: str | Metric = ACCURACY) -> str:
    """``drop:0.005`` as words."""
    name, _, value = threshold.partition(":")
    if isinstance(metric, str):
        # A name alone does not say how a drop of it is counted.
        metric = {"": ACCURACY, "accuracy": ACCURACY, "perplexity": PERPLEXITY}.get(metric) or Metric(metric)
    try:
        if name == "drop" and metric.name not in ("", "accuracy"):
            return f"a perplexity at most {100 * float(value):g} % higher" if metric == PERPLEXITY else text.worse(metric, float(value))
        return _LIMITS[name](float(value))
    except (KeyError, ValueError):
        return threshold


def headline(run: Run) -> tuple[str, str]:
    """The threshold and whether it is met, with the glyph; and the role of both."""
    verdict = judgement(run)
    if not verdict:
        return ("measured", "") if run.measured.get("ptq") else ("", "")
    wanted = limit(str(verdict.get("threshold", "")), run.metric)
    if in_doubt(verdict):
        return f"◐ met, in doubt: {wanted}", "change"
    return (f"● met: {wanted}", "good") if verdict.get("met") else (f"✗ not met: {wanted}", "harm")


def in_doubt(verdict: Figures) -> bool:
    """Whether a threshold is met by figures that the test is too small or too easy for."""
    return bool(verdict.get("met") and verdict.get("doubt"))


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
        if run.reads_text:
            return _rise(now / was - 1, bound, met)
        if run.metric.name != "accuracy":
            return _worse(run.metric, was, now, bound, met)
        drop = 100 * (was - now)
        if drop < 0.005:
            return "There is no drop" if drop > -0.005 else f"It gained {-drop:.2f} points"
        return f"The drop of {drop:.2f} points is {_side(met, 'under', 'over', drop, 100 * bound, _tidy(100 * bound))}"
    shown: dict[str, tuple[str, float, str, str, str, str]] = {
        "mse": ("error", 1.0, ".1e", "", "under", "over"),
        "sqnr": ("SQNR", 1.0, ".1f", " dB", "over", "under"),
        "agreement": ("agreement", 100.0, ".2f", " %", "over", "under"),
    }
    found = number(error.get("sqnr_db" if name == "sqnr" else name))
    if name not in shown or found is None:
        return ""
    word, scale, form, unit, good, bad = shown[name]
    shown_value = text.exponent(f"{scale * found:{form}}")
    return f"The {word} of {shown_value}{unit} is {_side(met, good, bad, found, bound, _tidy(scale * bound) + unit)}"


def _rise(rise: float, bound: float, met: bool) -> str:
    if rise < 5e-5:
        return "The perplexity has not risen" if rise > -5e-5 else f"The perplexity has fallen by {-100 * rise:.2f} %"
    found = f"The perplexity is {100 * rise:.2f} % higher, "
    return found + _side(met, "under", "over", 100 * rise, 100 * bound, f"{_tidy(100 * bound)} %")


def _worse(metric: Metric, was: float, now: float, bound: float, met: bool) -> str:
    """The sentence for any metric: by how much it is worse, in the unit that the threshold counts."""
    if metric.relative and not was:
        return ""
    drop = metric.drop(was, now)
    if not math.isfinite(drop):
        return ""
    by = metric.by(drop)
    if metric.by(0) == by:
        return f"The {metric.name} has not changed"
    if drop < 0:
        return f"The {metric.name} is {by} better"
    return f"The {metric.name} is {by} worse, {_side(met, 'under', 'over', drop, bound, metric.by(bound))}"


def _side(met: bool, good: str, bad: str, found: float, bound: float, shown: str) -> str:
    """The threshold must hold on validation too: the figure of the test split alone may be on its good side."""
    if met:
        return f"{'at' if math.isclose(found, bound, rel_tol=1e-3) else good} the threshold of {shown}"
    on_good = found <= bound if good == "under" else found >= bound
    return f"{good} the threshold of {shown} on test, but not on validation" if on_good else f"{bad} the threshold of {shown}"


def _tidy(value: float) -> str:
    return text.tidy(value)


def question(state: State, brief: bool = False) -> tuple[str, str]:
    """Whether to train, with what each key does; and its role. Empty where that is not open. ``brief`` leaves out why."""
    if state.asking != "qat":
        return "", ""
    why = reason(state.run)
    epochs = asked_epochs(state.run)
    much = f"{epochs} epoch{'' if epochs == 1 else 's'}" if epochs else "some epochs"
    recommended = state.job is not None and state.job.default
    doubtful = in_doubt(judgement(state.run))
    if brief:
        role = "change" if recommended or doubtful else "good"
        return f"t trains for {much}, n goes on without." if recommended else "n makes the report, t trains anyway.", role
    if recommended:
        start = f"{why}: " if why else "The threshold is not met: "
        return f"{start}t trains for {much}, n goes on without.", "change"
    start = f"{why}: " if why else "The threshold is met: "
    if doubtful:
        return f"{start}but the test cannot tell. n makes the report, t trains anyway.", "change"
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
