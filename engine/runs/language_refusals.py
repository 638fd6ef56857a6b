"""What is known before any work about exports of a decoder that cannot be made."""

from __future__ import annotations

from typing import Any

from engine.errors import EngineError, UsageError
from engine.export.decoder_formats import find
from engine.export.onnx.architecture import architecture
from engine.kernels.matrix.kind import kind_of
from engine.lowering.modules.layers import plan
from engine.models.anatomy import anatomy, linears
from engine.recipe.recipe import Recipe
from engine.runs.exporting import refusal


def check_decoder_exports(recipe: Recipe, model: Any) -> None:
    """Raises UsageError."""
    for name in recipe.export:
        find(name)
    if "compressed-tensors" in recipe.export:
        other = next((path for path, module in linears(model) if kind_of(module) == "Conv1D"), None)
        if other is not None:
            raise UsageError(
                f"export to compressed-tensors: its readers pass over transformers' Conv1D, which {other} is: give onnx instead"
            )
        found = plan(model, anatomy(model), recipe.preset, recipe.layer_rules(), {}, lambda spec, kind, shape, plain: "")
        if refused := refusal(recipe, found):
            raise refused
    if "onnx" in recipe.export:
        try:
            architecture(model)
        except EngineError as error:
            raise UsageError(f"export to onnx: {error}: leave it out") from error
