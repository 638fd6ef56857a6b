"""What the budget strip shows and says: plans as points, and what the one under the cursor changes. Pure functions."""

from __future__ import annotations

import math
from collections.abc import Sequence

from engine.recipe.spec import LayerSpec
from qtui import text
from qtui.budget import EXAMPLES, Front, Plan, changes
from qtui.drawing.scatter import Point, scatter
from qtui.drawing.spans import Line
from qtui.spec_words import spelled
from qtui.text import in_block

ASKS = f"type {EXAMPLES}"
_LEAST = 1e-12
_NAMED = 3


def points(front: Front, chosen: Plan | None) -> tuple[Point, ...]:
    """The plans by size and estimated error, both by their logarithms, ``now`` and the chosen one with markers of their own. What does
    no harm stands one decade beneath the least that does."""
    known = [plan.harm for plan in (*front.plans, front.now, *([chosen] if chosen else [])) if plan.harm > 0]
    least = min(known, default=_LEAST) / 10

    def at(plan: Plan, label: str = "", marker: str = "", role: str = "") -> Point:
        return Point(math.log10(max(plan.bytes, 1)), -math.log10(max(plan.harm, least)), label, role, marker)

    found = [at(plan) for plan in front.plans if plan is not chosen]
    found.append(at(front.now, "now", "▸", "change"))
    if chosen is not None:
        found.append(at(chosen, "", "◆", "accent"))
    return tuple(found)


def drawn(front: Front | None, chosen: Plan | None, waiting: str, width: int, height: int) -> list[Line]:
    """The strip as a chart of that size: less error is up, smaller is left."""
    found = points(front, chosen) if front is not None else ()
    least = max((point.y for point in found), default=0.0)
    # What does no harm at all has its place on a logarithmic scale, and no figure.
    none = front is not None and any(plan.harm <= 0 for plan in (*front.plans, front.now, *([chosen] if chosen else [])))
    return scatter(
        found,
        width,
        height,
        x_label="size",
        x_format=lambda x: text.size(10**x),
        y_format=lambda y: "none" if none and y == least else text.small(10**-y),
        empty=waiting,
    )


def title(front: Front | None) -> str:
    """``Budget ─ 14 plans ─ estimated error against size``."""
    return "Budget" if front is None else f"Budget ─ {len(front.plans)} plans ─ estimated error against size ─ ▸ now"


def sentence(front: Front, plan: Plan | None, lost: str = "") -> str:
    """What taking a plan would change: ``0.21 MB (−0.10), error 3.1e-3 instead of 1.2e-3; 2 layers change: fc1 w4 → w3 …``."""
    if plan is None:
        return f"→ goes to the next plan of more bytes, ← to one of fewer; or {ASKS}."
    changed = changes(front.now.draft, plan.draft)
    size = text.size(plan.bytes)
    if not changed:
        return f"{size}, error {text.small(plan.harm)}{lost}: this is the plan as it is."
    several = f"{len(changed)} layer{'s' if len(changed) > 1 else ''} change{'s' if len(changed) == 1 else ''}"
    ms = f", {plan.ms:.2f} ms" if plan.ms is not None else ""
    bits = f", {plan.bits_per_weight:.2f} bpw"
    harm = f"error {text.small(front.now.harm)} → {text.small(plan.harm)}{lost}"
    return f"{size}{bits}{ms}, {harm}; {several}: {_listed(changed)}. ⏎ takes it."


def taken(front: Front, plan: Plan) -> str:
    """What was done, once a plan is the draft."""
    count = len(changes(front.now.draft, plan.draft))
    what = "1 layer has" if count == 1 else f"{count} layers have"
    return f"{what} changed: {text.size(front.now.bytes)} → {text.size(plan.bytes)}. u takes it back, n goes on with it"


def _listed(changed: Sequence[tuple[str, LayerSpec, LayerSpec]]) -> str:
    said = [f"{in_block(path)} {_short(was)} → {_short(then)}" for path, was, then in changed[:_NAMED]]
    rest = len(changed) - _NAMED
    return ", ".join(said) + (f" and {rest} more" if rest > 0 else "")


def _short(spec: LayerSpec) -> str:
    """The weights alone where a layer has any: activations stay as the plan has them."""
    return spelled(spec).partition(" · ")[0]
