"""Small decoders on integers, as the tests of kernels, files and exports need them."""

from __future__ import annotations

from typing import Any

from families import build

from engine.lowering.modules.quantized import QuantizedDecoder, apply, duplicate
from engine.models.anatomy import Matrix, anatomy, weight_of
from engine.numerics.qparams import QParams
from engine.numerics.quantized_matrix import QuantizedMatrix
from engine.numerics.scheme import WeightScheme, int_scheme
from engine.numerics.weights import minmax, quantize
from engine.recipe.spec import ActivationSpec

INT8, DYNAMIC, STATIC = int_scheme(8, 0, True), ActivationSpec(8, dynamic=True), ActivationSpec(8)
VOCABULARY = 96


def on_integers(
    model: Any, weights: WeightScheme = INT8, activations: ActivationSpec | None = DYNAMIC, grid: QParams | None = None,
    rows: WeightScheme | None = INT8,
) -> QuantizedDecoder:  # fmt: skip
    """Every matrix rounded to nearest: those of layers to ``weights`` with ``activations``, embeddings, and what is tied to one, to
    ``rows`` (None: kept)."""
    twin, found = duplicate(model), {}
    for matrix in anatomy(model).matrices:
        first = found.get(matrix.tied or "")
        inputs = None if matrix.kind == "Embedding" else activations
        if first is not None:
            found[matrix.path] = QuantizedMatrix(first.weight, inputs, grid if inputs else None, matrix.tied)
        elif (spec := _spec(matrix, weights, rows)) is not None:
            weight = weight_of(model.get_submodule(matrix.path)).contiguous()
            found[matrix.path] = QuantizedMatrix(quantize(weight, minmax(weight, spec)), inputs, grid if inputs else None)
    apply(twin, {path: matrix.weight for path, matrix in found.items()})
    return QuantizedDecoder(twin, found)


def _spec(matrix: Matrix, weights: WeightScheme, rows: WeightScheme | None) -> WeightScheme | None:
    return rows if matrix.kind == "Embedding" or matrix.tied else weights


def small(family: str = "gpt2") -> Any:
    """A model of ``families`` whose weights are large enough that rounding them shows."""
    import torch

    model = build(family).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(8.0) if parameter.dim() > 1 else parameter.add_(torch.linspace(-0.1, 0.1, len(parameter)))
    return model
