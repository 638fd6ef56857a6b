"""What was asked on the command line, as a recipe."""

from __future__ import annotations

from argparse import Namespace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from engine.recipe.recipe import Recipe

_TOP = {"model": "model", "task": "task", "weights": "weights", "device": "device", "threshold": "threshold", "preset": "preset"}
_TOP |= {"stem": "stem", "quantize_first": "quantize_first", "export": "export", "seed": "seed", "graph": "graph", "target": "targets"}
_TOP |= {"cache": "cache", "rotation": "rotation", "stream": "stream"}
_DATA = {
    "data": "name",
    "mean": "mean",
    "std": "std",
    "limit": "limit",
    "size": "size",
    "crop": "crop",
    "interpolation": "interpolation",
    "classes": "classes",
    "rate": "rate",
    "calibration_from": "calibration_from",
}
_QAT = {"qat": "mode", "epochs": "epochs"}


def overrides(args: Namespace) -> dict[str, Any]:
    """The recipe's fields that the options name; an option that was not given is absent, so that a file's value stands."""
    fields = _given(args, _TOP)
    fields |= dict.fromkeys(getattr(args, "repair", None) or (), True)
    for key, names in (("data", _DATA), ("qat", _QAT)):
        part = _given(args, names)
        if part:
            fields[key] = part
    return fields


def recipe_of(args: Namespace) -> Recipe:
    """The recipe of a ``run``. Raises ``UsageError``."""
    from engine.recipe.recipe import Recipe

    fields = overrides(args)
    return Recipe.load(args.recipe, **fields) if args.recipe else Recipe.make(**fields)


def _given(args: Namespace, names: dict[str, str]) -> dict[str, Any]:
    return {field: getattr(args, option) for option, field in names.items() if getattr(args, option) is not None}
