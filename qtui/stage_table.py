"""What is known of a stage, and how its screen, its number and the engine's words for it are looked up."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING

from qtui.state import Stage, State

if TYPE_CHECKING:
    from qtui.screens.base import StageScreen


@dataclass(frozen=True)
class StageDef:
    """One stage of a run and its screen.

    ``screen`` is ``module:Class``, imported when it is first shown. ``engine_stages`` are the engine's stages that are shown on
    it, ``asks`` the keys of the questions that are answered there. ``about`` heads its help. ``unavailable`` gives the sentence
    that says why one cannot go there yet, or None. ``name`` says in a few words what one goes to; without it the title does.
    ``form`` marks a stage that a run may pass over: the form of the model that is measured where it took place.
    """

    id: Stage
    title: str
    screen: str
    engine_stages: tuple[str, ...]
    asks: tuple[str, ...]
    about: str
    unavailable: Callable[[State], str | None]
    name: str = ""
    form: str = ""


def registry() -> tuple[StageDef, ...]:
    """All stages, in order. Looked up when asked: the reasons that stand in the registry name stages by their numbers."""
    from qtui import stages

    return stages.REGISTRY


def ids() -> tuple[Stage, ...]:
    """The stages in order."""
    return tuple(stage.id for stage in registry())


def find(stage: Stage) -> StageDef:
    """The definition of a stage; KeyError where there is none of this id."""
    for known in registry():
        if known.id == stage:
            return known
    raise KeyError(stage)


def digit(stage: Stage) -> int:
    """The digit that goes to a stage, from 1."""
    return ids().index(stage) + 1


def title(stage: Stage) -> str:
    """The stage's name on the stage bar."""
    return find(stage).title


def of_engine(name: str) -> Stage | None:
    """Where a stage of the engine is shown; None where no screen asked for it."""
    return next((stage.id for stage in registry() if name in stage.engine_stages), None)


def asked_at(key: str) -> Stage | None:
    """Where a question of the engine is answered; None where no screen asked for it."""
    return next((stage.id for stage in registry() if key in stage.asks), None)


def screen_class(stage: Stage) -> type[StageScreen]:
    """A stage's screen, imported now."""
    module, _, name = find(stage).screen.partition(":")
    found: type[StageScreen] = getattr(import_module(module), name)
    return found
