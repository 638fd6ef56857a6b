"""Plans within a budget: what a person types as a limit, and the plans of least harm that the estimates find. Pure functions."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from engine.errors import UsageError
from engine.events.event import Sensitivities
from engine.events.rows import LayerRow
from engine.planning import search
from engine.planning.search import Choice, Item, Limits
from engine.planning.sensitivity import Sensitivity
from engine.planning.size import layer_bytes
from engine.recipe.spec import LayerSpec
from engine.recipe.targets import Target
from engine.tasks.metrics import Metric
from qtui.draft import Draft
from qtui.state import Run

MOST = 24
EXAMPLES = "0.20 MB, 20 %, 4.5 bpw, 2 ms or 0.5 points"
_LIMIT = re.compile(r"\s*(\d[\d,]*\.?\d*|\.\d+)\s*(%|[A-Za-z]*)\s*", re.ASCII)
_SIZES, _TIMES = ("b", "kb", "mb", "gb"), ("us", "ms", "s")
_BITS, _POINTS = ("bpw", "bit", "bits"), ("point", "points", "pt", "pp")


@dataclass(frozen=True)
class Plan:
    """One plan: what each layer is asked to become, the draft that it gives, its estimated harm, and the time of its layers by the times
    that they have alone (None where these are not known)."""

    draft: Draft
    harm: float
    bits_per_weight: float
    ms: float | None = None

    @property
    def bytes(self) -> int:
        return self.draft.predicted_bytes


@dataclass(frozen=True)
class Front:
    """The plans of which none is both smaller and less harmful than another, smallest first, and the draft they start from as ``now``.
    Layers that are marked in the draft stay as they are in all of them."""

    now: Plan
    plans: tuple[Plan, ...]
    items: tuple[Item, ...]

    @cached_property
    def changes_nothing(self) -> bool:
        """Whether no layer can become anything else."""
        return all(len(item.choices) < 2 for item in self.items)


def limit_of(text: str, metric: Metric) -> Target | str | None:
    """A limit as it is typed: a target, a sentence that says what is wrong with it, or None where nothing is typed."""
    if not text.strip():
        return None
    found = _LIMIT.fullmatch(text)
    unit = found[2].lower() if found else ""
    if found is None or not (unit == "%" or unit in (*_SIZES, *_TIMES, *_BITS, *_POINTS)):
        return f"A limit is a number and its unit: {EXAMPLES}"
    number = found[1].replace(",", "")
    try:
        if unit in _SIZES:
            return Target.parse(f"size:{number}{found[2]}")
        if unit in _TIMES:
            return Target.parse(f"latency:{number}{found[2]}")
        if unit in _BITS:
            return Target.parse(f"bpw:{number}")
        if unit == "%":
            return Target.parse(f"size:{float(number) / 100:.12g}")
        return Target.parse(f"drop:{float(number) / (100 if metric.relative else metric.scale):.12g}")
    except UsageError as error:
        return str(error).partition(": ")[2] or str(error)


def items_of(draft: Draft, estimates: Sensitivity) -> tuple[Item, ...]:
    """What each layer may become: other bits with the scale of least squared error, or as the draft has it. Layers that are marked, or that
    a rule of the recipe is for, stay as they are."""
    rows = [_as_drafted(draft, row) for row in draft.plan.layers]
    found = search.items_of(rows, estimates, method="mse")
    by_path = {row.path: row for row in rows}
    return tuple(replace(item, choices=_with_own(draft, by_path[item.path], item.choices, estimates)) for item in found)


def _as_drafted(draft: Draft, row: LayerRow) -> LayerRow:
    """A layer as the draft has it; of one that is marked as if a rule held it."""
    if row.path not in draft.specs:
        return row
    asked = replace(row, actual=draft.actual(row.path)[0])
    return replace(asked, rule=f"rule {row.path}") if row.path in draft.marked else asked


def _with_own(draft: Draft, row: LayerRow, choices: Sequence[Choice], estimates: Sensitivity) -> tuple[Choice, ...]:
    """The choices with the draft's own form of the layer among them, in the place of those of as many bits that are no smaller."""
    if row.path not in draft.specs:
        return tuple(choices)
    asked = draft.specs[row.path]
    own = replace(search.choice_of(row, row.actual, estimates), spec=asked)
    if len(choices) < 2:
        return (own,)
    others = (replace(choice, spec=_reading(choice.spec, asked)) for choice in choices)
    return (own, *(one for one in others if _bits(one.spec) != _bits(row.actual) or one.file_bytes < own.file_bytes))


def _reading(spec: LayerSpec, asked: LayerSpec) -> LayerSpec:
    """The weights of ``spec`` with what the draft asks for the activations."""
    return replace(spec, activations=asked.activations) if spec.weights and asked.weights else spec


def _bits(spec: LayerSpec) -> int | None:
    return spec.weights.bits if spec.weights else None


def plan_of(draft: Draft, items: Sequence[Item], found: search.Selection) -> Plan:
    """A selection as the draft that it gives."""
    specs = {path: choice.spec for path, choice in found.choices.items() if path in draft.specs}
    timed = all(choice.ms is not None for choice in found.choices.values())
    return Plan(draft.become(specs), found.harm, found.bits_per_weight, found.ms if timed else None)


def front_of(draft: Draft, estimates: Sensitivity) -> Front:
    """The front of the plans that a draft can become, those of ``MOST`` sizes at equal ratios. Takes seconds for models of hundreds of
    layers."""
    items = items_of(draft, estimates)
    now = plan_of(draft, items, _now(draft, items))
    ends = [search.solve(items, Limits(), lambda choice: choice.file_bytes), search.solve(items, Limits())] if items else []
    kept: dict[int, Plan] = {}
    if ends and ends[0] is not None and ends[1] is not None:
        base = now.bytes - _now(draft, items).file_bytes
        low, high = base + ends[0].file_bytes, base + ends[1].file_bytes
        for step in range(MOST):
            found = search.solve(items, Limits(file_bytes=low * (high / low) ** (step / (MOST - 1)) - base + 0.5))
            if found is not None:
                kept[found.file_bytes] = plan_of(draft, items, found)
    plans = [kept[size] for size in sorted(kept)]
    return Front(
        now, tuple(plan for before, plan in zip([None, *plans], plans, strict=False) if before is None or plan.harm < before.harm), items
    )


def _now(draft: Draft, items: Sequence[Item]) -> search.Selection:
    """The draft itself as a selection."""
    places = [next((n for n, one in enumerate(item.choices) if one.spec == draft.specs.get(item.path)), 0) for item in items]
    return search.selected(items, places)


def within(draft: Draft, front: Front, limit: Target, slope: float | None) -> Plan | str:
    """The plan of least harm within a limit (the smallest one for a limit of the drop), or a sentence that says why there is none.
    ``slope`` is what the metric loses for a unit of harm."""
    items = front.items
    if front.changes_nothing:
        return "No layer can become anything else: marked layers, and those of the recipe's rules, stay"
    rows = {row.path: row for row in draft.plan.layers}
    own = sum(layer_bytes(rows[item.path], draft.actual(item.path)[0]) for item in items if item.path in draft.specs)
    base = draft.predicted_bytes - own
    if limit.kind == "size":
        most = limit.value if limit.unit else limit.value * draft.plan.fp32_bytes
        found = search.solve(items, Limits(file_bytes=most - base))
        least = min((plan.bytes for plan in front.plans), default=0)
        return plan_of(draft, items, found) if found else f"No plan is so small: the smallest takes {least / 1e6:.3g} MB"
    if limit.kind == "bpw":
        found = search.solve(items, Limits(bits_per_weight=limit.value))
        fewest = min((plan.bits_per_weight for plan in front.plans), default=0.0)
        return plan_of(draft, items, found) if found else f"No plan has so few bits: the smallest stores {fewest:.2f} a weight"
    if limit.kind == "latency":
        return _fast(draft, items, limit)
    if slope is None:
        return "What a plan loses is not measured yet"
    found = search.solve(items, Limits(harm=limit.value / slope), lambda choice: choice.file_bytes)
    return plan_of(draft, items, found) if found else "No plan loses so little by its estimates: fp32 alone does"


def _fast(draft: Draft, items: Sequence[Item], limit: Target) -> Plan | str:
    if not all(choice.ms is not None for item in items for choice in item.choices):
        return "Not every layer was timed alone on integers and in fp32: how long a plan takes is not known here before it is measured"
    whole = 1.0 if limit.unit else math.fsum(row.fp32_ms or 0.0 for row in draft.plan.layers if row.editable)
    found = search.solve(items, Limits(ms=limit.value * whole))
    if found is not None:
        return plan_of(draft, items, found)
    least = math.fsum(min(choice.ms or 0.0 for choice in item.choices) for item in items)
    return f"No plan is so fast: by their own times the layers take {least:.3g} ms at least"


def slope_of(run: Run, found: Sensitivities, estimates: Sensitivity) -> float | None:
    """What the metric loses for a unit of estimated harm, by what was measured on validation: layers alone, or the whole plan of this run.
    None where nothing was measured, or nothing was lost."""
    measured = [one for one in found.layers if one.drop is not None]
    lost, harm = math.fsum(one.drop or 0.0 for one in measured), math.fsum(one.loss_increase for one in measured)
    told = (run.measured.get("ptq") or {}).get("validation") or {}
    value, base = told.get("value"), told.get("baseline")
    if run.plan is not None and isinstance(value, int | float) and isinstance(base, int | float):
        lost += run.metric.drop(base, value)
        harm += estimates.total({row.path: row.actual for row in run.plan.layers if row.editable})
    return lost / harm if lost > 0 and harm > 0 else None


def to_measure(found: Sensitivities, count: int = 3) -> tuple[tuple[str, str], ...]:
    """The candidates whose loss tells most of the slope: the most harmful one of each of the worst layers."""
    worst: Mapping[str, tuple[float, str]] = {}
    best = dict(worst)
    for one in found.layers:
        if one.drop is None and one.loss_increase > best.get(one.path, (0.0, ""))[0]:
            best[one.path] = (one.loss_increase, one.candidate)
    order = sorted(best.items(), key=lambda pair: -pair[1][0])[:count]
    return tuple((path, candidate) for path, (_, candidate) in order)


def changes(now: Draft, then: Draft) -> tuple[tuple[str, LayerSpec, LayerSpec], ...]:
    """The layers that differ between two drafts, with what they are asked to become in each, in the order of the graph."""
    return tuple(
        (row.path, now.specs[row.path], then.specs[row.path])
        for row in now.plan.layers
        if row.path in now.specs and now.specs[row.path] != then.specs.get(row.path)
    )
