"""What each layer of a plan costs, the worst first, and what a cure of the worst would change: pure functions of a draft."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from engine.events.event import LayerSensitivity, Sensitivities
from engine.planning.sensitivity import Sensitivity, cured
from engine.recipe.spec import LayerSpec
from qtui import text
from qtui.draft import Draft
from qtui.drawing.rows import Cell, Column, Row
from qtui.screens.calibrate_layers import HARMFUL_DB
from qtui.screens.strategy_detail import difference
from qtui.spec_words import spelled
from qtui.state import Run

Cure = Literal["w8a8", "fp32"]
CURES: Mapping[Cure, str] = {"w8a8": "8 bits", "fp32": "fp32"}
COLUMNS = (
    Column("layer", "layer", min=9, grow=3, priority=9),
    Column("as", "as it is", min=8, grow=1, cut="end", priority=6),
    Column("cure", "with the cure", min=8, grow=1, cut="end", priority=5),
    Column("weights", "w dB", align="right", priority=4),
    Column("activations", "a dB", align="right", priority=3),
    Column("share", "harm %", min=6, align="right", priority=8),
    Column("drop", "lost", align="right", priority=7),
)
_OF: Mapping[str, str] = {
    "kl": "nats between its answers and fp32's", "loss": "the task's loss", "mse": "the power of the outputs' error",
    "noise": "each layer's own noise, for no gradient comes through",
}  # fmt: skip


@dataclass(frozen=True)
class Ranking:
    """The layers of a draft with their estimated harm, worst first, and the draft that curing the worst ``cut`` of them gives.
    ``total`` and ``left`` are the harm of all layers before and with the cure."""

    estimates: Sensitivity
    draft: Draft
    cured: Draft
    layers: tuple[tuple[str, float], ...]
    cut: int
    total: float
    left: float

    def reached(self, path: str) -> bool:
        """Whether the layer is above the line."""
        return path in {one for one, _ in self.layers[: self.cut]}


def known(found: Sensitivities) -> Sensitivity:
    """The estimates of an event."""
    return Sensitivity(found.layers, found.basis, found.items, found.seconds)


def rank(draft: Draft, found: Sensitivities, cut: int, cure: Cure) -> Ranking:
    """The draft's layers by harm, with its worst ``cut`` cured."""
    estimates, actual = known(found), _actual(draft)
    worst = estimates.ranked(actual)
    cut = min(max(cut, 0), len(worst))
    rules = cured(draft.plan.layers, [path for path, _ in worst[:cut]], cure)
    specs = {rule.match: LayerSpec(rule.spec.weights, rule.spec.activations) for rule in rules}
    after = draft.become({path: spec for path, spec in specs.items() if path in draft.specs})
    return Ranking(estimates, draft, after, worst, cut, estimates.total(actual), estimates.total(_actual(after)))


def _actual(draft: Draft) -> dict[str, LayerSpec]:
    return {path: draft.actual(path)[0] for path in draft.specs}


def rows(ranking: Ranking, run: Run) -> tuple[Row, ...]:
    """One row a layer: those above the line are marked, and say what they become."""
    total = ranking.total or 1.0
    return tuple(_row(ranking, run, path, harm / total) for path, harm in ranking.layers)


def _row(ranking: Ranking, run: Run, path: str, share: float) -> Row:
    now, then = ranking.draft.actual(path)[0], ranking.cured.actual(path)[0]
    weights, activations = parts(ranking.estimates, path, now)
    above = ranking.reached(path)
    return Row(
        path,
        (
            path, spelled(now), Cell(spelled(then), "change") if then != now else Cell("as it is" if above else "", "dim"), _db(weights),
            _db(activations), Cell(f"{100 * share:.1f}", bar=share), _drop(run, weights, activations),
        ),
        role="" if above or ranking.cut == 0 else "dim", glyph="▲" if above else "·", marked=False,
    )  # fmt: skip


def parts(estimates: Sensitivity, path: str, spec: LayerSpec) -> tuple[LayerSensitivity | None, LayerSensitivity | None]:
    """What was found of a layer's weights and of its activations at the widths of ``spec``."""
    found = estimates.of(path)
    weights = found.get(f"w{spec.weights.bits}") if spec.weights else None
    return weights, found.get(f"a{spec.activations.bits}") if spec.weights and spec.activations else None


def _db(found: LayerSensitivity | None) -> Cell:
    if found is None or not math.isfinite(found.noise_db):
        return Cell("")
    return Cell(f"{found.noise_db:.1f}", "harm" if found.noise_db < HARMFUL_DB else "")


def _drop(run: Run, *found: LayerSensitivity | None) -> Cell:
    """What the metric lost with this layer alone on integers, where that was measured."""
    drops = [one.drop for one in found if one is not None and one.drop is not None]
    if not drops:
        return Cell("")
    lost, metric = math.fsum(drops), run.metric
    said = f"{100 * lost:.2f} %" if metric.relative else f"{metric.scale * lost:.2f}"
    return Cell(said, "harm" if lost > 0 else "")


def title(ranking: Ranking, found: Sensitivities) -> str:
    """``Sensitivity ─ 18 layers ─ nats between … on 64 items``."""
    measured = f" ─ {found.measured} measured" if found.measured else ""
    return f"Sensitivity ─ {len(ranking.layers)} layers ─ {_OF[found.basis]}, {found.items} items{measured}"


def line(ranking: Ranking, cure: Cure, run: Run) -> str:
    """What the cut does: ``worst 3 in 8 bits: +9.2 kB, harm −66 %``."""
    if not ranking.cut:
        return "+ draws the line under the worst layer"
    size = difference(ranking.cured.predicted_bytes - ranking.draft.predicted_bytes)
    less = 1 - ranking.left / ranking.total if ranking.total else 0.0
    said = [f"worst {ranking.cut} in {CURES[cure]}: {size}", f"harm −{100 * less:.0f} %"]
    if (ms := milliseconds(ranking)) is not None:
        said.append(f"{ms:+.2f} ms" if round(ms, 2) else "same time")
    if (value := predicted(ranking, run)) is not None:
        said.append(value)
    return ", ".join(said)


def milliseconds(ranking: Ranking) -> float | None:
    """By how much the layers that leave integers, or come to them, change the time of one item, by their times alone; None where a
    layer's is not known."""
    found = 0.0
    for path, _ in ranking.layers[: ranking.cut]:
        row = ranking.draft.layer(path)
        before, after = (draft.actual(path)[0].weights is not None for draft in (ranking.draft, ranking.cured))
        if row is None or before == after:
            continue
        if row.int8_ms is None or row.fp32_ms is None:
            return None
        found += (row.int8_ms - row.fp32_ms) * (after - before)
    return found


def predicted(ranking: Ranking, run: Run) -> str | None:
    """What the metric would be, from what this run's PTQ lost on validation for the harm of its plan; None before that was measured, or
    where the plan was edited since."""
    if not ranking.draft.as_planned or not ranking.total:
        return None
    before, after = run.measured.get("baseline") or {}, run.measured.get("ptq") or {}
    told = after.get("validation") or {}
    value, base = told.get("value", after.get("value")), told.get("baseline", before.get("value"))
    if not isinstance(value, int | float) or not isinstance(base, int | float):
        return None
    return f"about {run.metric.format(base + (value - base) * ranking.left / ranking.total)} on validation"


def sentence(ranking: Ranking, path: str | None, run: Run) -> str:
    """The layer under the cursor, in words: what of it does the harm, and what is to be tried."""
    harm = dict(ranking.layers).get(path or "")
    if path is None or harm is None:
        return "No layer of this plan does any harm that could be estimated."
    now = ranking.draft.actual(path)[0]
    weights, activations = parts(ranking.estimates, path, now)
    name, share = text.one_line(path), harm / ranking.total if ranking.total else 0.0
    losses = [one.loss_increase if one is not None else 0.0 for one in (weights, activations)]
    of = "its weights" if losses[0] >= losses[1] else "what it reads"
    where = list(dict(ranking.layers)).index(path) + 1
    said = f"{name} does {100 * share:.0f} % of the estimated harm (place {where} of {len(ranking.layers)})"
    if sum(losses):
        said += f", {100 * max(losses) / sum(losses):.0f} % of that by {of}"
    return f"{said}. {advice(ranking, path, now, losses)}"


def advice(ranking: Ranking, path: str, spec: LayerSpec, losses: Sequence[float]) -> str:
    """What to try first for a layer."""
    found = ranking.estimates.of(path)
    if spec.weights is None:
        return "It is in fp32 already."
    if losses[0] >= losses[1]:
        bits = spec.weights.bits
        wider = [one for name, one in found.items() if name[0] == "w" and int(name[1:]) > bits]
        if not wider:
            return "Its weights have 8 bits already: f on the strategy keeps it in fp32."
        # Of widths that are stored in as many bytes the widest is free.
        more = min(wider, key=lambda one: (one.size_bytes, -one.noise_db))
        now = found.get(f"w{bits}")
        gain = f" ({now.noise_db:.0f} → {more.noise_db:.0f} dB)" if now is not None else ""
        return f"{more.candidate} would help{gain}; R on the strategy lists roundings that keep the bits."
    return "r on the strategy changes its observer: an outlier may hold its range wide."
