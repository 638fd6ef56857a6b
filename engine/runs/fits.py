"""Words of a recipe that belong to the other kind of model: told in one line, where they would have no effect. Torch-free."""

from __future__ import annotations

from collections.abc import Iterator

from engine.algorithms.registry import METHODS
from engine.data.text.corpora import ENTRIES as TEXTS
from engine.errors import UsageError
from engine.export.registry import formats_of
from engine.recipe.capabilities import CONVOLUTION
from engine.recipe.recipe import DataPart, QatPart, Recipe, RulePart

# A run writes all keys into its recipe: only what differs from the default was asked for.
_DATA, _QAT = DataPart(), QatPart()


def check(recipe: Recipe, reads: str) -> None:
    """``reads`` is what the model is given: images, text, or anything.

    Raises UsageError for the first word that such a model has no use for."""
    if recipe.data.rate is not None and reads != "anything":
        raise UsageError(f"data.rate is for audio, and {recipe.model} reads {reads}: leave it out")
    words = {"text": _of_images, "images": _of_text}.get(reads)
    found = next(words(recipe), None) if words else None
    if recipe.stream and reads != "text":
        found = found or "stream is for language models"
    if found:
        raise UsageError(f"{found}, and {recipe.model} reads {reads}: leave it out")


def _of_images(recipe: Recipe) -> Iterator[str]:
    part, qat = recipe.data, recipe.qat
    asked = {
        "stem": recipe.stem != "auto", "quantize_first": recipe.quantize_first, "fold_later": recipe.fold_later, "slower": recipe.slower,
        "equalize": recipe.equalize, "bias_correction": recipe.bias_correction,
        "bn_reestimation": recipe.bn_reestimation,
        "data.mean": part.mean, "data.std": part.std, "data.size": part.size,
        "data.crop": part.crop, "data.interpolation": part.interpolation, "data.classes": part.classes,
        "data.calibration_from": part.calibration_from,
        "data.batch": part.batch != _DATA.batch,
        "qat.freeze_bn": qat.freeze_bn != _QAT.freeze_bn,
    }  # fmt: skip
    yield from (f"{key} is for networks on images" for key, given in asked.items() if given)


def _of_text(recipe: Recipe) -> Iterator[str]:
    part = recipe.data
    if part.name in TEXTS:
        raise UsageError(f"{part.name} is text and {recipe.model} reads images: give --data digits, cifar10 or a folder of images by class")
    asked = {"data.context": part.context, "data.stride": part.stride != _DATA.stride, "graph: export": recipe.graph != "modules"}
    asked |= {"cache": recipe.cache is not None, "rotation": recipe.rotation is not None, "stream": recipe.stream}
    yield from (f"{key} is for language models" for key, given in asked.items() if given)
    yield from (f"export to {name} is for language models" for name in recipe.export if name not in formats_of("graph"))
    for rule in recipe.rules:
        yield from (f"rule {rule.match!r}: {words} is for language models" for words in _of_decoders(rule))


def _of_decoders(rule: RulePart) -> Iterator[str]:
    if rule.weights and (why := METHODS[rule.weights.method].needs_blocks):
        yield f"method {rule.weights.method}, which {why},"
    if rule.weights and not rule.weights.symmetric and not CONVOLUTION.affine:
        yield "symmetric: false of weights"
    if rule.activations and rule.activations.dynamic and "dynamic" not in CONVOLUTION.activations:
        yield "dynamic: true"
