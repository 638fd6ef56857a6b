"""Pair classification: what two texts are to each other."""

from __future__ import annotations

from collections.abc import Generator

from engine.events.cancellation import StopToken
from engine.events.event import Event
from engine.recipe.recipe import Recipe
from engine.tasks import text_classification
from engine.tasks.subject import Subject


def load(recipe: Recipe, stop: StopToken, device: str) -> Generator[Event, None, Subject]:
    """The model and the pairs of texts that ``recipe`` names. Raises UsageError or EngineError in one line for what does not fit."""
    return (yield from text_classification.load_kind(recipe, device, text_classification.PairClassification))
