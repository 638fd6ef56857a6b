"""What a recipe says of training, for a language model: what it is where nothing was said, and the schedule that it asks for."""

from __future__ import annotations

from engine.recipe.recipe import QatPart, Recipe
from engine.training.finetune import TuneSchedule

_USUAL = TuneSchedule()


def qat_settled(part: QatPart) -> QatPart:
    """With what fine-tuning on text takes where nothing was said. The batch is known when the text is: see ``with_batch``."""
    # A small model has read its text often: fp32's answers teach more.
    usual = {"distill": 1.0, "lr": _USUAL.lr}
    return QatPart.model_validate({**usual, **part.model_dump(exclude_unset=True)})


def with_batch(recipe: Recipe, context: int) -> Recipe:
    """With the windows of ``context`` tokens that a training step reads: about a thousand tokens where nothing was said."""
    if "batch" in recipe.qat.model_fields_set:
        return recipe
    batch = max(_USUAL.tokens // context, 1)
    return recipe.model_copy(update={"qat": QatPart.model_validate({**recipe.qat.model_dump(), "batch": batch})})


def schedule_of(part: QatPart, context: int, seed: int) -> TuneSchedule:
    """The training that ``part`` asks for, in windows of ``context`` tokens."""
    return TuneSchedule(epochs=part.epochs, context=context, tokens=part.batch * context, lr=part.lr, distill=part.distill, seed=seed)
