"""The training schedule that a recipe asks for, of a language model."""

from __future__ import annotations

from engine.recipe.recipe import QatPart
from engine.training.finetune import TuneSchedule


def schedule_of(part: QatPart, context: int, seed: int) -> TuneSchedule:
    """The training that ``part`` asks for, in windows of ``context`` tokens."""
    return TuneSchedule(epochs=part.epochs, context=context, tokens=part.batch * context, lr=part.lr, distill=part.distill, seed=seed)
