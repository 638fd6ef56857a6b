"""The engine in one call, for scripts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.errors import UsageError
from engine.events.cancellation import StopToken
from engine.recipe.recipe import Recipe
from engine.report.report import Report
from engine.runs.pipeline import IN_MEMORY, run

if TYPE_CHECKING:
    from torch import nn

    from engine.tasks.base import Task


_NAMED = "quantize(Recipe.make(model=…), out)"
_IN_HAND = "quantize(model=…, task=engine.Task.of(train=loader, metric=…), out=…)"


def quantize(
    recipe: Recipe | None = None, out: str | Path | None = None, *, model: nn.Module | None = None, task: Task | None = None, **fields: Any
) -> Report:
    """Quantize in the folder ``out``, taking the default at every question: what ``recipe`` names, or a ``model`` in hand as ``task``
    measures it. ``fields`` are the recipe's, beside a model in hand. The model itself is not changed.

    Raises UsageError for what makes no sense as asked, EngineError for what cannot go on.

    >>> report = quantize(Recipe.make(model="simplecnn"), "out")  # doctest: +SKIP
    >>> report = quantize(model=net, task=Task.of(loader, metric=accuracy), out="out", preset="w8a8")  # doctest: +SKIP
    """
    _check_kinds(recipe, model, fields)
    if out is None:
        raise UsageError("quantize needs a folder: give out=")
    if (recipe is None) == (model is None) or (model is None) != (task is None):
        raise UsageError("quantize takes a recipe, or a model and its task: quantize(recipe, out) or quantize(model=…, task=…, out=…)")
    in_hand = None
    if model is not None and task is not None:
        recipe, in_hand = Recipe.make(model=f"{IN_MEMORY}{type(model).__name__}", **fields), (model, task)
    elif fields:
        raise UsageError(f"{next(iter(fields))} belongs to the recipe: give it to Recipe.make")
    assert recipe is not None
    steps = run(recipe, Path(out), StopToken(), in_hand=in_hand)
    while True:
        try:
            next(steps)
        except StopIteration as end:
            report: Report = end.value
            return report


def _check_kinds(recipe: object, model: object, fields: Mapping[str, object]) -> None:
    """Raises UsageError for what was given in another's place."""
    if recipe is not None and not isinstance(recipe, Recipe):
        if callable(getattr(recipe, "forward", None)):
            raise UsageError(f"the first argument is a model, {type(recipe).__name__}: give it with what measures it, {_IN_HAND}")
        named = f"a name goes into a recipe: {_NAMED}" if isinstance(recipe, str) else f"or {_IN_HAND}"
        raise UsageError(f"the first argument is no recipe but {type(recipe).__name__}: {named}")
    if model is not None and not callable(getattr(model, "forward", None)):
        raise UsageError(f"model is no nn.Module but {type(model).__name__}: a name goes into a recipe, {_NAMED}")
    data = fields.get("data")
    if data is not None and not isinstance(data, Mapping) and hasattr(data, "__iter__") and not isinstance(data, str):
        raise UsageError(f"data is a {type(data).__name__}: a loader goes into the task, {_IN_HAND}")
