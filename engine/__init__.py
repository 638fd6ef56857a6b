"""The engine quantizes a PyTorch model in a fixed order of stages, each a generator of events.

Public names are imported when they are first used: importing the package costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from engine.api import quantize as quantize
    from engine.lowering.artifact import load_quantized as load_quantized
    from engine.recipe.recipe import Recipe as Recipe
    from engine.report.report import Report as Report
    from engine.tasks.base import Batch as Batch
    from engine.tasks.base import Task as Task

_PLACES = {
    "Recipe": "engine.recipe.recipe",
    "Report": "engine.report.report",
    "load_quantized": "engine.lowering.artifact",
    "quantize": "engine.api",
    "Batch": "engine.tasks.base",
    "Task": "engine.tasks.base",
}

__all__ = ["Batch", "Recipe", "Report", "Task", "load_quantized", "quantize"]


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'engine' has no attribute {name!r}")
    return getattr(import_module(_PLACES[name]), name)
