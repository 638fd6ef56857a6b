"""What the report says in sentences: the verdict, what is missing, a layer. Pure functions."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence

from rich.text import Text

from qtui import text
from qtui.drawing.bars import progress
from qtui.drawing.spans import Line, Span, merged
from qtui.drawing.text import end, safe
from qtui.screens.calibrate_result import in_doubt, limit
from qtui.screens.report_rows import (
    Layer,
    differs,
    form,
    layers_of,
    noise,
    number,
    own_alone,
    percent,
    shown,
    total_params,
    verdict,
)
from qtui.spec_words import respelled
from qtui.stage_table import digit, title
from qtui.state import Run, State
from qtui.target_words import aimed

_FORMS = {
    "integer": "integer arithmetic",
    "stored": "weights stored as integers",
    "fp32": "stays in fp32",
    "folded": "folded into the layer before",
}


def paragraph(spans: Sequence[Span], width: int, most: int) -> list[Line]:
    """Spans as one text wrapped to ``width``, cut after ``most`` lines."""
    words = [(word, role) for part, role in spans for word in safe(part).split(" ") if word]
    lines: list[list[Span]] = [[]]
    used = 0
    for word, role in words:
        if used and used + 1 + len(word) > width:
            lines.append([])
            used = 0
        lines[-1].append((f" {word}" if used else word, role))
        used += len(word) + (1 if used else 0)
    if len(lines) > most:
        last = lines[most - 1]
        while len(last) > 1 and sum(len(word) for word, _ in last) + 2 > width:
            last.pop()
        if last:
            last[-1] = (f"{last[-1][0]} …", last[-1][1])
    kept = [merged(line) for line in lines[:most]]
    return [[(end(part, width), role) for part, role in line] for line in kept]


def verdict_title(state: State, width: int = 80) -> str:
    """Whether the threshold is met; where there is room, which it is."""
    found = verdict(state.run)
    if not found:
        return "Report"
    word = "threshold met, in doubt" if in_doubt(found) else "threshold met" if found.get("met") else "threshold not met"
    title = f"Verdict ─ {word}" if state.run.report else f"Verdict so far ─ {word}"
    wanted = limit(str(found.get("threshold") or ""), state.run.metric)
    return f"{title}: {wanted}" if wanted and len(title) + len(wanted) + 8 <= width else title


def verdict_spans(state: State) -> list[Span]:
    """A glyph, what is chosen, and why; without a report what is missing and where to go."""
    found = verdict(state.run)
    said = text.verdict(found, state.run.measured)
    if state.run.report and not said:
        return [("○", "change"), ("The report has no verdict: run it again", "")]
    if not state.run.report:
        glyph, role, reason = missing(state)
        return [(glyph, role), (reason, ""), *([(f"As measured so far: {said}", "dim")] if said else [])]
    role = "change" if in_doubt(found) else "good" if found.get("met") else "harm"
    head, colon, rest = said.partition(":")
    # Before the reasons, which are cut where there is no room.
    target = aimed(state.run.report)
    return [("●" if found.get("met") else "✗", role), *([target] if target else []), (head + colon, role), (rest, "")]


def missing(state: State) -> tuple[str, str, str]:
    """Glyph, role and sentence for a run without a report: what is missing, and which key goes there."""
    run, at = state.run, f"{title(state.run.at)} ({digit(state.run.at)})"
    working = state.busy and state.job is not None and state.job.kind != "train"
    if working and state.asking:
        return "◐", "accent", f"No report yet: the run waits for your choice on {at}."
    if working:
        doing = run.doing or "working"
        return "◐", "accent", f"No report yet: {doing[:1].lower()}{doing[1:]} …" + ("" if run.at == "report" else f" It shows on {at}.")
    status = run.status(run.at)
    if status == "failed":
        return (
            "✗",
            "harm",
            f"This run failed on {at}, so it has no report. 1 goes to the models and runs: r there resumes it, if it was saved.",
        )
    if run.stopped or status == "stopped":
        return "◌", "change", f"This run was stopped on {at}, before its report. 1 goes to the models and runs: r there resumes it."
    if not run.model and not run.directory:
        return "○", "dim", "No report yet: nothing was run. 1 goes to the models: choose one, and n begins."
    return "○", "change", f"This run has no report: it came as far as {at}. 1 goes to the models and runs: r there resumes it."


def progress_line(state: State, width: int) -> Line:
    """The bar of what the run, or its export, does now; empty without one."""
    now = state.run.progress
    if not state.busy or (state.run.report and not state.exporting):
        return []
    if now is None:
        return [(end(f"{state.run.doing} …", width), "accent")] if state.exporting else []
    pace = text.pace(now)
    tail = f" {100 * now.done // max(now.total, 1)} %" + (f"  {pace}" if pace else "")
    room = max(width - len(tail), 4)
    return [(progress(now.done, now.total, room), "bar"), (tail[:width], "")]


def layer_sentence(row: Layer, rows: Sequence[Layer]) -> str:
    """One layer: what it became and why; the noisiest is called that."""
    name, reason = str(row.get("name") or "?"), text.one_line(row.get("reason") or "no reason is recorded").rstrip(".")
    kind = form(row)
    if kind == "fp32":
        head = f"{name} stays in fp32"
    elif kind == "folded":
        head = f"{name} is folded"
    elif differs(row):
        head = f"{name} was asked to be {respelled(row.get('requested'))} and runs as {respelled(row.get('actual'))}"
    elif len(rows) > 1 and math.isfinite(noise(row)) and noise(row) == min(map(noise, rows)):
        head = f"{name} adds the most noise ({noise(row):.1f} dB)"
    else:
        head = name
    if reason.startswith("preset ") and kind != "fp32" and not differs(row):
        reason = f"{row.get('actual')} on {text.kernels(row.get('kernel'))}, as {reason} asks"
    return f"{head}: {reason}."


def layer_panel(row: Layer, run: Run) -> Text:
    """Everything about a layer, for a panel."""
    out = Text()
    for line in layer_lines(row, run, 68):
        for part, role in line:
            out.append(part, role)
        out.append("\n")
    out.rstrip()
    return out


def layer_lines(row: Layer, run: Run, width: int) -> list[Line]:
    """Everything about a layer."""
    rows = layers_of(run)
    total, params = total_params(rows), number(row, "params")
    path = str(row.get("name") or "")
    planned = next((layer for layer in run.plan.layers if layer.path == path), None) if run.plan else None
    share = f" ({percent(params / total)} %)" if params is not None and total else ""
    alone = own_alone(rows)
    noisy = "of its rounded weights" if alone else "that this layer adds itself"
    facts = [
        ("kind", str(row.get("kind") or "")),
        ("shape", "×".join(map(str, planned.weight_shape)) if planned else ""),
        ("asked for", respelled(row.get("requested"))),
        ("runs as", respelled(row.get("actual"))),
        ("", _FORMS[form(row)]),
        ("on", str(row.get("kernel") or "")),
        ("parameters", shown(params, "{:,.0f}") + share),
        ("fp32 time", shown(number(row, "time_share"), "{:.1%}").replace("%", " %")),
        ("SQNR", "" if alone else shown(number(row, "sqnr_db"), "{:.1f} dB, the noise of all layers up to here")),
        ("own SQNR", shown(number(row, "own_sqnr_db"), f"{{:.1f}} dB, the noise {noisy}")),
        ("rule", str(row.get("rule") or "")),
        *_seen(path, run),
        ("why", text.one_line(row.get("reason") or "no reason is recorded")),
    ]  # fmt: skip
    lines: list[Line] = []
    for name, value in facts:
        wrapped = textwrap.wrap(safe(value), max(width - 12, 10))
        lines += [[(f"{name if not index else '':<12}", "dim"), (part, "")] for index, part in enumerate(wrapped)]
    return lines


def _seen(path: str, run: Run) -> list[tuple[str, str]]:
    weights = run.weights.get(path)
    found = [("weights", f"{weights.low:.3g} to {weights.high:.3g}, on grids up to ±{weights.clip_high:.3g}")] if weights else []
    for row in run.ranges.rows if run.ranges else ():
        if path in row.layers:
            found.append(("inputs", f"{row.low:.3g} to {row.high:.3g}, clipped to {row.clip_low:.3g} to {row.clip_high:.3g}"))
    return found
