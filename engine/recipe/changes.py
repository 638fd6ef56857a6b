"""A recipe with one decision changed, checked as if it had been written so. Torch-free; each raises UsageError in one line."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

from engine.recipe.recipe import Recipe, RulePart
from engine.recipe.spec import Rule


def with_strategy(recipe: Recipe, preset: str, rules: Sequence[Rule]) -> Recipe:
    """Another preset and other rules, in this order. A rule that the recipe has already stays in its words, which the fingerprint
    is of."""
    known = {(part.match, part.rule().spec): part for part in recipe.rules}
    return _changed(recipe, preset=preset, rules=[known.get((rule.match, rule.spec)) or rule_part(rule) for rule in rules])


def with_epochs(recipe: Recipe, epochs: int) -> Recipe:
    """Training for that many epochs, whether or not the threshold is met without it."""
    return _changed(recipe, qat={**recipe.qat.model_dump(), "mode": "always", "epochs": epochs})


def with_fold_later(recipe: Recipe, names: Iterable[str]) -> Recipe:
    """These normalizations, by module path, folded only at conversion."""
    return _changed(recipe, fold_later=list(names))


def with_slower(recipe: Recipe, paths: Iterable[str]) -> Recipe:
    """These layers, by module path, computed in fp32 under the preset ``default``, whatever is measured next time."""
    return _changed(recipe, slower=list(paths))


def with_repairs(recipe: Recipe, names: Iterable[str]) -> Recipe:
    """These repairs (``equalize``, ``bias_correction``, ``bn_reestimation``) beside those that it has."""
    return _changed(recipe, **dict.fromkeys(names, True))


def rule_part(rule: Rule) -> RulePart:
    """The recipe's words for a rule: ``rule_part(rule).rule() == rule``."""
    weights, activations = rule.spec.weights, rule.spec.activations
    fields: dict[str, Any] = {"match": rule.match}
    fields |= {"weights": {**asdict(weights), "format": weights.format or None}} if weights else {}
    fields |= {"activations": activations.fields()} if activations else {}
    (part,) = Recipe.make(model="any", rules=[fields if len(fields) > 1 else {**fields, "keep": "fp32"}]).rules
    part._line = rule.line
    return part


def _changed(recipe: Recipe, **fields: Any) -> Recipe:
    made = Recipe.make(**{**recipe.model_dump(), **fields})
    # What did not change stays the same objects: rules know the line they came from.
    return recipe.model_copy(update={name: getattr(made, name) for name in fields})
