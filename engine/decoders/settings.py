"""A recipe's keys for a language model: what they are where nothing was said, and which are for networks on images alone."""

from __future__ import annotations

from typing import Any

from engine.decoders.finetune import TuneSchedule
from engine.errors import UsageError
from engine.recipe import QatPart, Recipe

_IMAGES = ("data.mean", "data.std", "data.size", "data.batch", "qat.freeze_bn", "stem", "quantize_first", "fold_later", "slower")
_USUAL = TuneSchedule()


def refuse_keys_of_images(recipe: Recipe) -> None:
    """Raises UsageError where one of them is not as it is when nothing was said."""
    plain = Recipe.make(model=recipe.model)
    # An empty list says as little as none.
    said = [key for key in _IMAGES if _value(recipe, key) not in (_value(plain, key), ())]
    if said:
        verb, them = ("is", "it") if len(said) == 1 else ("are", "them")
        raise UsageError(f"{', '.join(said)} {verb} for networks on images, and {recipe.model} reads text: take {them} out of the recipe")


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


def _value(recipe: Recipe, key: str) -> Any:
    value: Any = recipe
    for name in key.split("."):
        value = getattr(value, name)
    return value
