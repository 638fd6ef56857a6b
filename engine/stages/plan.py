"""plan: what each layer is to become on this machine, and why."""

from __future__ import annotations

from collections.abc import Generator, Mapping

from torch import fx

from engine.events import Event, Notice, Table
from engine.kernels.choose import why_simulated
from engine.kernels.probe import Machine
from engine.quant.plan import Plan
from engine.quant.plan import plan as make_plan
from engine.recipe import Recipe


def plan(gm: fx.GraphModule, machine: Machine, recipe: Recipe, time_share: Mapping[str, float]) -> Generator[Event, None, Plan]:
    made = make_plan(gm, machine, recipe.preset, recipe.layer_rules(), time_share)
    for text in (*made.warnings, *filter(None, [why_simulated(machine)])):
        yield Notice(text, "warning")
    if machine.saturates:
        yield Notice(f"{machine.isa} has no VNNI: sums of 8-bit products saturate here, activations use 7 bits", "warning")
    if recipe.isa and recipe.isa != machine.isa:
        yield Notice(f"the recipe was made on {recipe.isa}, this machine has {machine.isa}: the numbers can differ", "warning")
    rows = tuple((layer.path, layer.kind, str(layer.actual), layer.why) for layer in made.layers)
    yield Table("plan", f"Plan ─ {len(rows)} layers", ("layer", "kind", "becomes", "why"), rows)
    return made
