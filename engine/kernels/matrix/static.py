"""int8 weights with activations on a grid that calibration has fixed."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from engine.kernels.base import IntegerLayer, LayerFunction
from engine.kernels.dnnl.dynamic import GridLinear
from engine.kernels.matrix.integers import Integers, bits_of, first
from engine.kernels.probe import Machine
from engine.numerics.qparams import QParams, affine, quantize
from engine.numerics.qtensor import QTensor
from engine.numerics.quantized_matrix import QuantizedMatrix


class Static(Integers):
    word, dynamic = "static", False

    def function(self, weight: QTensor, matrix: QuantizedMatrix, bias: Tensor | None, machine: Machine) -> Callable[[Tensor], Tensor]:
        assert matrix.grid is not None, "a matrix whose activations are not dynamic has their grid"
        grid, scale = exact_here(matrix.grid, machine), weight.channel_scale
        if machine.runs("dnnl"):
            return GridLinear(weight.codes, scale, bias, grid)
        added = None if bias is None else bias.float().contiguous()
        return OnGrid(first(machine).build(IntegerLayer("linear", weight.codes, scale, added, grid, None)), grid)


class OnGrid:
    """A kernel's function for rows of uint8, as a function of (..., in) in float32."""

    def __init__(self, run: LayerFunction, grid: QParams) -> None:
        self._run, self._grid = run, grid

    def __call__(self, x: Tensor) -> Tensor:
        y = self._run(quantize(x.reshape(-1, x.shape[-1]), self._grid).contiguous())
        return y.view(*x.shape[:-1], -1)


def exact_here(grid: QParams, machine: Machine) -> QParams:
    """The same range with the bits whose products do not saturate on ``machine``."""
    bits = bits_of(grid.bits, machine)
    if bits == grid.bits:
        return grid
    return affine(-grid.zero_point * grid.scale, (grid.qmax - grid.zero_point) * grid.scale, bits)
