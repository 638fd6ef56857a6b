"""Rules and presets on layers: which rule is for a layer, and what is asked of it then. Torch-free."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from fnmatch import fnmatchcase
from typing import Protocol

from engine.recipe.spec import Rule

KIND = "kind:"


class Named(Protocol):
    """What a rule looks at: a ``Layer`` of the planner, or a ``LayerRow``."""

    @property
    def path(self) -> str: ...

    @property
    def kind(self) -> str: ...


def matches(rule: Rule, layer: Named) -> bool:
    """Whether the rule's glob fits the layer's path or, after ``kind:``, the name of its class."""
    if rule.match.startswith(KIND):
        return fnmatchcase(layer.kind, rule.match.removeprefix(KIND))
    return fnmatchcase(layer.path, rule.match)


def resolve(layer: Named, rules: Sequence[Rule]) -> int | None:
    """The index of the first rule that matches ``layer``: it wins. None where none does, and the preset decides."""
    return next((i for i, rule in enumerate(rules) if matches(rule, layer)), None)


def unused(rules: Sequence[Rule], used: Collection[int], all_ruled: bool) -> tuple[str, ...]:
    """A sentence for each rule whose index is not in ``used``. ``all_ruled`` is whether rules are for every layer there is."""
    return tuple(_warning(rule, rules, all_ruled) for i, rule in enumerate(rules) if i not in used)


def _warning(rule: Rule, rules: Sequence[Rule], all_ruled: bool) -> str:
    where = f"line {rule.line}: " if rule.line else ""
    shadowed = any(other.match == rule.match and other is not rule for other in rules)
    more = " that an earlier rule has not taken" if shadowed else "" if all_ruled else " that it could change"
    return f"{where}rule {rule.match!r} matches no layer{more}"
