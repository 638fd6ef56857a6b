"""The inputs of a decoder's matrices, rounded as its recipe says, where it computes in float32."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from engine.errors import EngineError
from engine.lowering.modules.coded_cache import attached
from engine.lowering.modules.quantized import QuantizedDecoder
from engine.numerics.float_activations import round_floats, simulated
from engine.numerics.formats import round_to_
from engine.numerics.quantized_matrix import QuantizedMatrix


@contextmanager
def rounding(decoder: QuantizedDecoder) -> Iterator[Any]:
    """The twin with the inputs of its matrices, and its keys and values, rounded as the recipe says, until the end of the block."""
    hooks = [
        decoder.twin.get_submodule(path).register_forward_pre_hook(_round(matrix))
        for path, matrix in decoder.matrices.items() if matrix.activations is not None
    ]  # fmt: skip
    try:
        with attached(decoder.twin, decoder.cache):
            yield decoder.twin
    finally:
        for hook in hooks:
            hook.remove()


def rounded(x: Tensor, matrix: QuantizedMatrix) -> Tensor:
    """``x`` (..., in) on the matrix's activation grid: one symmetric step a row where it is dynamic, else the calibrated one;
    in floats of few bits where the recipe says so."""
    assert matrix.activations is not None
    if simulated(matrix.activations):
        return round_floats(x, matrix.activations, None if matrix.grid is None else matrix.grid.scale)
    if matrix.activations.dynamic:
        top = (1 << (matrix.activations.bits - 1)) - 1
        step = x.abs().amax(-1, keepdim=True).clamp_min(1e-30) / top
        return torch.round(x / step) * step
    if matrix.grid is None:
        raise EngineError("a matrix of static activations has no grid: quantize the model again")
    grid = matrix.grid
    return round_to_(x / grid.scale, 0, grid.qmax, grid.zero_point).sub_(grid.zero_point) * grid.scale


def _round(matrix: QuantizedMatrix) -> Any:
    def before(module: nn.Module, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (rounded(given[0], matrix), *given[1:])

    return before
