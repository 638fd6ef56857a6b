"""The two lines that stand above every screen: where one is, and what it is about. Pure functions to styled pieces."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from typing import Any

from engine.tasks.metrics import Metric
from qtui import text
from qtui.stage_table import digit, registry
from qtui.state import Run, Stage, State, Status

Piece = tuple[str, str]

GLYPHS: Mapping[Status, str] = {
    "next": "○", "running": "◐", "waiting": "◐", "done": "●", "failed": "✗", "stopped": "◌", "skipped": "–",
}  # fmt: skip
_ROLES: Mapping[Status, str] = {"running": "accent", "waiting": "accent", "done": "good", "failed": "harm", "stopped": "change"}


def stage_bar(state: State, here: Stage, width: int) -> list[Piece]:
    """The stages with their marks, and the machine at the right where there is room."""
    for gap, names in ((" ─ ", "all"), (" ", "all"), (" ", "here")):
        pieces = _stages(state.run, here, gap, names == "all")
        used = sum(len(piece) for piece, _ in pieces)
        if used <= width:
            break
    for machine in _machine(state):
        if used + len(machine) + 2 <= width:
            return [*pieces, (" " * (width - used - len(machine) - 1), ""), (machine, "dim")]
    return pieces


def _stages(run: Run, here: Stage, gap: str, names: bool) -> list[Piece]:
    pieces: list[Piece] = [(" ", "")]
    known = registry()
    for place, stage in enumerate(known, 1):
        status = run.status(stage.id)
        role = _ROLES.get(status, "dim")
        pieces.append((f"{GLYPHS[status]} ", role))
        name = stage.title if names or stage.id == here else str(place)
        pieces.append((name, "here" if stage.id == here else "" if status != "next" else "dim"))
        if stage is not known[-1]:
            pieces.append((gap, "dim"))
    return pieces


def stage_at(index: int) -> Stage | None:
    """The stage whose mark or name is the piece of that ``index`` of a stage bar; None for what stands between and behind them."""
    known, (place, part) = registry(), divmod(index - 1, 3)
    return known[place].id if 0 <= place < len(known) and part < 2 else None


def _machine(state: State) -> tuple[str, ...]:
    found = state.machine
    if found is None:
        return ("starting PyTorch …", "starting …")
    environment = state.run.environment
    device = str(environment.get("device") or ("cuda" if found.get("gpus") else "cpu"))
    isa = str(found.get("isa", "")).replace("AVX512", "AVX-512")
    threads = found.get("threads")
    long = f"{isa} VNNI" if found.get("vnni") and "VNNI" not in isa else isa
    many = f"{threads} thread{'' if threads == 1 else 's'}"
    return (f"{device} · {long} · {many}", f"{device} · {isa} · {threads} thr", f"{device} · {isa}", isa, device)


def subject(state: State, width: int) -> list[Piece]:
    """Model, data, the figure that matters now and the size; at the right what is going on elsewhere."""
    run, job = state.run, state.job
    if job is not None and job.kind == "train":
        # The figures of a run that is open behind it are not those of what is trained.
        left: list[Piece] = [(f" {short_name(job.model)}", "strong"), *_joined([(short_name(job.data), ""), *_learned(state)])]
    elif not run.model:
        left = [(" Choose what to quantize", "")]
    else:
        left = [(f" {short_name(run.model)}", "strong"), *_joined(_facts(run))]
    right = doing(state)
    while len(left) > 1 and _length(left) + len(right) + 2 > width:
        left = left[:-2]
    room = width - _length(left) - len(right) - 1
    return [*left, (" " * max(room, 1), ""), (right, "accent")] if right and room > 0 else left


def _learned(state: State) -> list[Piece]:
    best = state.baseline.best
    return [("training a baseline", ""), *([(f"best {text.titled(best.metric or 'accuracy', best.value)}", "")] if best else [])]


def _joined(facts: list[Piece]) -> list[Piece]:
    return [piece for fact in facts for piece in ((" · ", "dim"), fact)]


def _length(pieces: list[Piece]) -> int:
    return sum(len(piece) for piece, _ in pieces)


def _facts(run: Run) -> list[Piece]:
    # A task of one's own brings its data.
    data = str(run.recipe.get("task") or run.data)
    facts: list[Piece] = [(short_name(data), "")] if data else []
    baseline = run.measured.get("baseline")
    best = run.measured.get("qat") if (run.measured.get("qat") or {}).get("kept") else run.measured.get("ptq")
    metric = run.metric
    name = text.named(metric)
    if baseline and best:
        facts.append((f"{name}{_plain(metric, baseline)} → {_metric(metric, best)}", ""))
        facts.append((f"{_mb(_size(baseline))} → {_size(best)}", ""))
    elif baseline:
        facts.append((f"fp32 {name}{_metric(metric, baseline)}", ""))
    elif run.plan and run.draft:
        facts.append((f"{_mb(text.size(run.plan.fp32_bytes))} → {text.size(run.draft.predicted_bytes)} as planned", ""))
    elif run.plan:
        facts.append((f"fp32 {text.size(run.plan.fp32_bytes)}", ""))
    elif run.traced:
        facts.append((f"{sum(node.params for node in run.traced):,} parameters", ""))
    return facts


def _plain(metric: Metric, figures: Mapping[str, Any]) -> str:
    return _metric(metric, figures).removesuffix(f" {metric.unit}" if metric.unit else "")


def _metric(metric: Metric, figures: Mapping[str, Any]) -> str:
    """A figure that was not finite is null in a report."""
    value = figures.get("value")
    return "?" if value is None else text.metric(metric, value)


def _size(figures: Mapping[str, Any]) -> str:
    count = figures.get("size_bytes")
    return "?" if count is None else text.size(count)


def _mb(size: str) -> str:
    return size.removesuffix(" MB")


def doing(state: State) -> str:
    """What the engine does at the moment, in a few words."""
    job = state.job
    if job is None or job.kind == "examine":
        return ""
    if job.stopping:
        return "stopping …"
    if job.ending:
        return "ending …"
    if job.asking:
        return "your choice"
    if job.paused:
        where = digit("train" if state.run.at == "train" else "calibrate")
        return f"paused: {where}, then p" if job.kind in ("run", "resume") else "paused"
    # A training's progress is that of one epoch; its steps tell how far all of it has come.
    step = state.baseline.now if job.kind == "train" else state.run.training.now if state.run.phase == "qat" else None
    progress = state.baseline_progress if job.kind == "train" else state.run.progress
    if step is not None and step.total:
        return text.part(step.done, step.total)
    if progress is None or not progress.total:
        return "working …"
    far = text.part(progress.done, progress.total)
    return f"part {state.run.part}, {far}" if state.run.part > 1 and job.kind != "train" and step is None else far


def short_names(names: Collection[str]) -> dict[str, str]:
    """The short name of each, with as much of the path before it as tells it from the others: ``net.py:make``, ``two/net.py:make``."""
    found = {name: short_name(name) for name in names}
    longest = max((name.count("/") + 1 for name in names), default=0)
    for parts in range(1, longest + 1):
        counts = Counter(found.values())
        for name, short in found.items():
            if counts[short] > 1:
                found[name] = "/".join(name.rstrip("/").split("/")[-parts:])
    return found


def short_name(name: str) -> str:
    """The last part of a path or of ``module:factory``."""
    return name.rpartition(":")[2].rstrip("/").rpartition("/")[2] or name
