"""Mixed precision as an integer linear programme: one form for each layer, the least harm within limits. Torch-free.

The harm of a plan is the sum of what each layer costs alone (``planning.sensitivity``), its size the sum of theirs, so that the best plan
is that of a multiple-choice knapsack (of layers' bits: Yao et al. 2021, HAWQ-V3, arXiv:2011.10680, section 3.4). It is solved to the end
by SciPy's HiGHS.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from engine.events.rows import LayerRow
from engine.planning.sensitivity import BITS, Sensitivity, activations_of, weights_of
from engine.planning.size import layer_bytes, weight_bytes
from engine.recipe.spec import FP32, LayerSpec, Rule

_SECONDS = 20.0
# Times that a programme is solved again, and units of the cost in one of the best plan's: HiGHS stops at differences of 1e-6.
_ROUNDS, _FINE = 4, 1e3
_EIGHT = 8
_SEVERAL = 3


@dataclass(frozen=True)
class Choice:
    """What one layer may become, and what it then costs: ``harm`` to the loss, bytes that it adds to fp32's file, bytes of its weights
    with their scales, and milliseconds, None where they were not measured."""

    spec: LayerSpec
    harm: float
    file_bytes: int
    weight_bytes: int
    ms: float | None = None


@dataclass(frozen=True)
class Item:
    """One layer with its choices; ``weights`` counts those that ``bits per weight`` is about."""

    path: str
    choices: tuple[Choice, ...]
    weights: int = 0


@dataclass(frozen=True)
class Limits:
    """Upper bounds of sums over all layers: bytes added to fp32's file (negative), bits per weight, milliseconds, harm; None for none."""

    file_bytes: float | None = None
    bits_per_weight: float | None = None
    ms: float | None = None
    harm: float | None = None


@dataclass(frozen=True)
class Selection:
    """A plan: the choice of each layer by path, and its sums."""

    choices: Mapping[str, Choice] = field(hash=False)
    harm: float
    file_bytes: int
    bits_per_weight: float
    ms: float | None

    @property
    def specs(self) -> dict[str, LayerSpec]:
        return {path: choice.spec for path, choice in self.choices.items()}


def items_of(
    rows: Sequence[LayerRow], found: Sensitivity, method: str | None = None, bits: Sequence[int] = BITS, fp32: bool = True
) -> tuple[Item, ...]:
    """What each layer of a plan may become: weights in each of ``bits``, rounded by ``method`` where there is that for the layer, with
    the activations that the plan has, or fp32. A layer that a rule of the recipe is for, or of which nothing is known, stays."""
    items = []
    for row in rows:
        if not row.editable:
            continue
        weights = 0 if row.tied else math.prod(row.weight_shape)
        pinned = row.rule.startswith("rule ") or row.tied is not None or not found.of(row.path)
        specs = [row.actual] if pinned else _specs(row, method, bits, fp32)
        items.append(Item(row.path, tuple(choice_of(row, spec, found) for spec in specs), weights))
    return tuple(items)


def choice_of(row: LayerRow, spec: LayerSpec, found: Sensitivity) -> Choice:
    """What a layer costs as ``spec``."""
    integers = spec.weights is not None and spec.activations is not None
    ms = row.int8_ms if integers else row.fp32_ms
    return Choice(spec, found.harm(row.path, spec), layer_bytes(row, spec), weight_bytes(row, spec.weights), ms)


def _specs(row: LayerRow, method: str | None, bits: Sequence[int], fp32: bool) -> list[LayerSpec]:
    activations = row.actual.activations
    if row.actual.weights is None and row.capabilities.rounds_inputs:
        activations = activations_of(row, _EIGHT)
    several = [LayerSpec(weights_of(row, width, method if width < _EIGHT else None), activations) for width in bits]
    return [*several, *([FP32] if fp32 else [])]


def solve(items: Sequence[Item], limits: Limits, least: Callable[[Choice], float] | None = None) -> Selection | None:
    """The plan of least harm, or of the least sum of ``least``, within ``limits``; None where there is none. Of equal plans the one that
    HiGHS comes to, which is the same every time."""
    if not items:
        return None
    total = sum(item.weights for item in items) or 1
    bounds: list[tuple[Callable[[Choice], float], float]] = []
    if limits.file_bytes is not None:
        bounds.append((lambda choice: choice.file_bytes, limits.file_bytes))
    if limits.bits_per_weight is not None:
        bounds.append((lambda choice: 8.0 * choice.weight_bytes, limits.bits_per_weight * total))
    if limits.ms is not None:
        bounds.append((lambda choice: choice.ms or 0.0, limits.ms))
    if limits.harm is not None:
        bounds.append((lambda choice: choice.harm, limits.harm))
    places = _milp(items, least or (lambda choice: choice.harm), bounds)
    return None if places is None else selected(items, places)


def selected(items: Sequence[Item], places: Sequence[int]) -> Selection:
    """The plan with the choice at ``places`` of each layer."""
    chosen = {item.path: item.choices[place] for item, place in zip(items, places, strict=True)}
    times = [choice.ms for choice in chosen.values()]
    ms = math.fsum(time for time in times if time is not None) if any(time is not None for time in times) else None
    bits = 8.0 * sum(choice.weight_bytes for choice in chosen.values()) / (sum(item.weights for item in items) or 1)
    harm = math.fsum(choice.harm for choice in chosen.values())
    return Selection(chosen, harm, sum(choice.file_bytes for choice in chosen.values()), bits, ms)


def front(items: Sequence[Item], most: int = 16) -> tuple[Selection, ...]:
    """Plans of which none is both smaller and less harmful than another, from the smallest to the least harmful: those of ``most`` sizes
    at equal distances."""
    ends = [solve(items, Limits(), lambda choice: choice.file_bytes), solve(items, Limits())]
    if ends[0] is None or ends[1] is None:
        return ()
    low, high = ends[0].file_bytes, ends[1].file_bytes
    sizes = [low + (high - low) * step / max(most - 1, 1) for step in range(most)]
    found = [plan for size in sizes if (plan := solve(items, Limits(file_bytes=size))) is not None]
    kept: list[Selection] = []
    for plan in sorted(found, key=lambda one: (one.file_bytes, one.harm)):
        if not kept or plan.harm < kept[-1].harm:
            kept.append(plan)
    return tuple(kept)


def rules_of(rows: Sequence[LayerRow], specs: Mapping[str, LayerSpec]) -> tuple[Rule, ...]:
    """Rules, behind those of the recipe, by which each layer becomes what ``specs`` says: one for all layers of the form that most have,
    since a recipe is part of the file, and before it those of the others. Layers that a rule of the recipe is for have theirs already."""
    known = [row for row in rows if row.path in specs and not row.rule.startswith("rule ")]
    counts = Counter(specs[row.path] for row in known)
    if not counts:
        return ()
    # What is not named here must not be taken along.
    others = [row for row in rows if row.editable and row.path not in specs and not row.rule.startswith("rule ")]
    common = counts.most_common(1)[0][0]
    if counts[common] < _SEVERAL or others:
        return tuple(Rule(_literal(row.path), specs[row.path]) for row in known)
    own = tuple(Rule(_literal(row.path), specs[row.path]) for row in known if specs[row.path] != common)
    return (*own, Rule("*", common))


def _literal(path: str) -> str:
    """A glob that matches this path alone."""
    return "".join(f"[{c}]" if c in "*?[" else c for c in path)


def _milp(
    items: Sequence[Item], least: Callable[[Choice], float], bounds: Sequence[tuple[Callable[[Choice], float], float]]
) -> list[int] | None:
    """The place of each layer's choice. HiGHS works to absolute tolerances, and harms are of many orders of magnitude: the programme is
    solved again without the choices that alone cost more than the best plan so far, in units of that plan."""
    costs = [[least(choice) for choice in item.choices] for item in items]
    # What is the same for all choices of a layer changes no plan.
    costs = [[cost - min(several) for cost in several] for several in costs]
    places = _solved(items, costs, bounds, [[True] * len(several) for several in costs], max(map(max, costs)))
    for _ in range(_ROUNDS):
        if places is None:
            return None
        best = math.fsum(several[place] for several, place in zip(costs, places, strict=True))
        if best == 0:
            return places
        allowed = [[cost <= best for cost in several] for several in costs]
        again = _solved(items, costs, bounds, allowed, best)
        if again is None or math.fsum(several[place] for several, place in zip(costs, again, strict=True)) >= best:
            return places
        places = again
    return places


def _solved(
    items: Sequence[Item], costs: Sequence[Sequence[float]], bounds: Sequence[tuple[Callable[[Choice], float], float]],
    allowed: Sequence[Sequence[bool]], unit: float,
) -> list[int] | None:  # fmt: skip
    import numpy as np
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import csr_matrix

    choices = [choice for item in items for choice in item.choices]
    open_ = np.array([one for several in allowed for one in several], dtype=float)
    cost = np.array([one for several in costs for one in several]) * open_ / (unit or 1.0) * _FINE
    owner = [number for number, item in enumerate(items) for _ in item.choices]
    each = csr_matrix((np.ones(len(choices)), (owner, np.arange(len(choices)))))
    constraints: list[Any] = [LinearConstraint(each, 1, 1)]
    for value, most in bounds:
        row = np.array([value(choice) for choice in choices], dtype=float)
        scale = np.abs(row).max() or 1.0
        constraints.append(LinearConstraint(row[None] / scale, -np.inf, most / scale))
    options = {"mip_rel_gap": 0.0, "time_limit": _SECONDS}
    found = milp(cost, constraints=constraints, integrality=np.ones(len(choices)), bounds=Bounds(0, open_), options=options)
    if found.x is None:
        return None
    places, start = [], 0
    for item in items:
        places.append(int(np.argmax(found.x[start : start + len(item.choices)])))
        start += len(item.choices)
    kept = [item.choices[place] for item, place in zip(items, places, strict=True)]
    within = all(math.fsum(value(choice) for choice in kept) <= most + 1e-6 * max(abs(most), 1.0) for value, most in bounds)
    return places if within else None
