"""A strategy from and to a recipe file, and as the recipe of another run."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from engine.recipe.spec import Rule
from qtui.draft import Draft
from qtui.state import Run
from qtui.strategy_rules import fields_of, rules_of
from qtui.subject import short_name
from qtui.text import one_line

Rules = Sequence[Rule]


def recipe_of(run: Run, draft: Draft) -> dict[str, Any]:
    """The run's recipe with the edited strategy."""
    rules = [fields_of(rule) for rule in draft.rules(rules_of(run.recipe))]
    return {**run.recipe, "preset": draft.preset, "rules": rules}


def measured_again(run: Run, draft: Draft) -> dict[str, Any]:
    """The recipe for another run with this strategy. Training is offered, not begun: it was decided for another strategy."""
    recipe = recipe_of(run, draft)
    qat: Mapping[str, Any] = recipe.get("qat") or {}
    return {**recipe, "qat": {**qat, "mode": "auto"}} if qat.get("mode") == "always" else recipe


def default_name(run: Run) -> str:
    parts = (re.sub(r"[^\w.-]+", "-", short_name(name)).strip("-.") for name in (run.model, run.data))
    return f"{'-'.join(part for part in parts if part) or 'strategy'}.recipe.yaml"


def wrong_target(value: str) -> str | None:
    """Why a recipe cannot be written there, in one line."""
    from engine.errors import EngineError
    from engine.paths import check_writable

    path = Path(value).expanduser()
    if not value:
        return "Give a file name, such as mine.recipe.yaml"
    if path.is_dir():
        return f"{value} is a folder: add a file name, such as {value.rstrip('/')}/mine.recipe.yaml"
    try:
        check_writable(path)
    except EngineError as error:
        return one_line(error)
    return None


def save(path: Path, run: Run, draft: Draft) -> str | None:
    """Write the recipe whole or not at all; what went wrong in one line, or None."""
    from engine.errors import EngineError
    from engine.paths import save as save_file
    from engine.recipe.recipe import Recipe

    try:
        save_file(path, Recipe.make(**recipe_of(run, draft)).to_yaml().encode())
    except EngineError as error:
        return one_line(error)
    return None


def wrong_source(value: str) -> str | None:
    """Why a recipe file cannot be taken, in one line."""
    from engine.errors import EngineError

    if not value:
        return "Give a recipe file, such as recipe.yaml in a run's folder"
    try:
        load(value)
    except EngineError as error:
        return one_line(error)
    return None


def load(value: str) -> tuple[str, Sequence[Rule]]:
    """The preset and the rules of a recipe file. Raises UsageError."""
    from engine.recipe.recipe import Recipe

    recipe = Recipe.load(str(Path(value).expanduser()))
    return recipe.preset, recipe.layer_rules()
