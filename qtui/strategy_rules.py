"""Rules and presets resolved on the layers of a plan, as the engine's planner does, and back: from wanted specs to rules."""

from __future__ import annotations

import glob
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from engine.events.event import LayerRow
from engine.planning import rules as planning
from engine.planning.rules import KIND
from engine.recipe.presets import BY_ROLE
from engine.recipe.spec import FP32, ActivationSpec, LayerSpec, Rule, WeightSpec


def exactly(path: str) -> str:
    """The glob that matches this module path and no other."""
    escaped = glob.escape(path)
    return f"[k]{escaped[1:]}" if escaped.startswith(KIND) else escaped


def base(row: LayerRow, preset: str) -> LayerSpec:
    """What the preset alone asks of a layer."""
    return BY_ROLE[row.capabilities.role].get(preset, row.proposed)


def resolve(rows: Iterable[LayerRow], preset: str, rules: Sequence[Rule]) -> dict[str, LayerSpec]:
    """What rules and preset ask of each layer that can be quantized: the first rule that matches wins."""
    found = ((row, planning.resolve(row, rules)) for row in rows if row.editable)
    return {row.path: base(row, preset) if index is None else rules[index].spec for row, index in found}


def rules_for(rows: Sequence[LayerRow], preset: str, wanted: Mapping[str, LayerSpec], own: Sequence[Rule]) -> tuple[Rule, ...]:
    """Rules that give each layer what is wanted: one for each that preset and ``own`` rules would not give it, then those of
    ``own`` that still decide something."""
    exact = {exactly(row.path): row.path for row in rows if row.editable}
    kept = [rule for rule in own if rule.match not in exact or wanted[exact[rule.match]] == rule.spec]
    given = resolve(rows, preset, kept)
    new = [Rule(exactly(path), spec) for path, spec in wanted.items() if given[path] != spec]
    rules = [*new, *kept]
    deciding = {planning.resolve(row, rules) for row in rows}
    return tuple(rule for i, rule in enumerate(rules) if i in deciding)


def rules_of(recipe: Mapping[str, Any]) -> tuple[Rule, ...]:
    """The rules in a recipe's fields, as ``Setting`` has them."""
    return tuple(_rule(fields) for fields in recipe.get("rules") or ())


def _rule(fields: Mapping[str, Any]) -> Rule:
    if not fields.get("weights"):
        return Rule(str(fields["match"]), FP32)
    activations = ActivationSpec.of(fields["activations"]) if fields.get("activations") else None
    return Rule(str(fields["match"]), LayerSpec(WeightSpec.of(fields["weights"]), activations))


def fields_of(rule: Rule) -> dict[str, Any]:
    """A rule in a recipe's words."""
    weights, activations = rule.spec.weights, rule.spec.activations
    if weights is None:
        return {"match": rule.match, "keep": "fp32"}
    # A recipe has no empty name for integers: null stands for them.
    asked = {"weights": {**asdict(weights), "format": weights.format or None}}
    return {"match": rule.match, **asked, **({"activations": activations.fields()} if activations else {})}
