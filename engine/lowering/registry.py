"""The ways to integers by name. A new one is one package and one line here."""

from __future__ import annotations

from importlib import import_module

from engine.lowering.base import Lowering, RunContext
from engine.tasks.subject import Subject

LOWERINGS = {
    "graph": "engine.lowering.graph.lowering:GraphLowering",
    "modules": "engine.lowering.modules.lowering:ModulesLowering",
}


def lowering_of(subject: Subject, run: RunContext) -> Lowering:
    """The lowering of ``subject``, for one run. It is imported now: the modules lowering brings transformers."""
    return lowering_class(subject.lowering)(subject, run)


def lowering_class(name: str) -> type[Lowering]:
    """The lowering of that name."""
    module, _, attribute = LOWERINGS[name].partition(":")
    found: type[Lowering] = getattr(import_module(module), attribute)
    return found
