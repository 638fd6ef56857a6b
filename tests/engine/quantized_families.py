"""Tiny decoders of every family with their matrices on integers."""

from __future__ import annotations

from typing import Any

import torch
from families import FAMILIES, build

from engine.lowering.modules.quantized import QuantizedDecoder, apply, duplicate
from engine.models.anatomy import anatomy, weight_of
from engine.numerics.quantized_matrix import QuantizedMatrix
from engine.numerics.scheme import WeightScheme, int_scheme
from engine.numerics.weights import minmax, quantize
from engine.recipe.spec import ActivationSpec

FOUR, EIGHT = int_scheme(4, 16), int_scheme(8, 0, True)
DYNAMIC = ActivationSpec(symmetric=True, dynamic=True)


def lively(model: Any, seed: int = 1) -> Any:
    """Weights, norms and biases large enough that a mistake shows."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * (0.2 if parameter.dim() > 1 else 0.1))
    return model.eval()


def decoder_of(
    model: Any,
    spec: WeightScheme = FOUR,
    embeddings: WeightScheme | None = EIGHT,
    activations: ActivationSpec | None = None,
) -> QuantizedDecoder:
    """Every matrix rounded to nearest; ``embeddings`` is what the embedding of tokens and the head become, None keeps them."""
    twin = duplicate(model)
    parts, matrices = anatomy(twin), {}
    for matrix in parts.matrices:
        outside = matrix.block is None
        if (matrix.kind == "Embedding" and matrix.path != parts.embedding) or (outside and embeddings is None):
            continue
        if matrix.tied:
            matrices[matrix.path] = QuantizedMatrix(matrices[matrix.tied].weight, None, None, matrix.tied)
            continue
        form = embeddings if outside and embeddings else spec
        held = weight_of(twin.get_submodule(matrix.path)).float().contiguous()
        matrices[matrix.path] = QuantizedMatrix(quantize(held, minmax(held, form)), None if outside else activations)
    apply(twin, {path: matrix.weight for path, matrix in matrices.items()})
    return QuantizedDecoder(twin, matrices)


def family(name: str, *args: Any, **kwargs: Any) -> QuantizedDecoder:
    return decoder_of(lively(build(name)), *args, **kwargs)


def some_ids(rows: int = 2, tokens: int = 9, vocabulary: int = 96) -> torch.Tensor:
    return torch.randint(vocabulary, (rows, tokens), generator=torch.Generator().manual_seed(3))


NAMES = sorted(FAMILIES)
