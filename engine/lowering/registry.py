"""The ways to integers by name. A new one is one package and one line here."""

from __future__ import annotations

from importlib import import_module

from engine.lowering.base import Lowering, NotWhole, RunContext, Steps
from engine.tasks.subject import Subject

LOWERINGS = {
    "graph": "engine.lowering.graph.lowering:GraphLowering",
    "islands": "engine.lowering.islands.lowering:IslandsLowering",
    "modules": "engine.lowering.modules.lowering:ModulesLowering",
    "streamed": "engine.lowering.modules.streamed:StreamedLowering",
}


def lowering_of(subject: Subject, run: RunContext) -> Lowering:
    """The lowering of ``subject``, for one run. It is imported now: the modules lowering brings transformers."""
    return lowering_class(subject.lowering)(subject, run)


def captured(lowering: Lowering) -> Steps[Lowering]:
    """``lowering`` once it has captured its model, or the one that takes its place where it refuses the model as a whole."""
    try:
        yield from lowering.capture()
    except NotWhole as refused:
        if lowering.instead is None:
            raise
        other = lowering_class(lowering.instead)(lowering.subject, lowering.run, refused)
        yield from other.capture()
        return other
    return lowering


def lowering_class(name: str) -> type[Lowering]:
    """The lowering of that name."""
    module, _, attribute = LOWERINGS[name].partition(":")
    found: type[Lowering] = getattr(import_module(module), attribute)
    return found
