"""The engine in one call, for scripts."""

from __future__ import annotations

from pathlib import Path

from engine.events.cancellation import StopToken
from engine.recipe.recipe import Recipe
from engine.report.report import Report
from engine.runs.pipeline import run


def quantize(recipe: Recipe, out: str | Path) -> Report:
    """Carry out ``recipe`` in the folder ``out``, taking the default at every question. Raises UsageError or EngineError."""
    steps = run(recipe, Path(out), StopToken())
    while True:
        try:
            next(steps)
        except StopIteration as end:
            report: Report = end.value
            return report
