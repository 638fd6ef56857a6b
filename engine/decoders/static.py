"""int8 weights with activations on a grid that calibration has fixed."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from engine.decoders.computed import Computed
from engine.decoders.dynamic import bits_of, notes
from engine.decoders.kernel import Asked
from engine.decoders.on_int8 import on_int8
from engine.decoders.quantized import QuantizedMatrix
from engine.kernels.base import IntegerLayer, LayerFunction
from engine.kernels.choose import kernels_for
from engine.kernels.dnnl.dynamic import GridLinear
from engine.kernels.probe import Machine
from engine.quant.grouped import GroupedWeight
from engine.quant.numerics import QParams, affine, quantize


class Static:
    """On the first integer kernel that runs here, or simulated."""

    def __init__(self, simulated: bool = False) -> None:
        self.storage_only = simulated

    def label(self, asked: Asked, machine: Machine) -> str:
        return f"{kernels_for(machine)[0].name} static{'' if asked.int8 else ' on int8'}"

    def refuses(self, asked: Asked, machine: Machine) -> str | None:
        if asked.kind == "Embedding" or asked.activations is None or asked.activations.dynamic:
            return "activations have no fixed grid"
        if machine.integer == self.storage_only:
            return "integer kernels run here" if machine.integer else "no integer kernel runs here"
        return None

    def note(self, asked: Asked, machine: Machine) -> str | None:
        return notes(asked, machine)

    def computed(self, weight: GroupedWeight) -> Tensor:
        return on_int8(weight).dequantize()

    def build(self, matrix: QuantizedMatrix, bias: Tensor | None, machine: Machine) -> nn.Module:
        assert matrix.grid is not None, "a matrix whose activations are not dynamic has their grid"
        weight, grid = on_int8(matrix.weight).to(machine.device), exact_here(matrix.grid, machine)
        kernel, scale = kernels_for(machine)[0], weight.scale[:, 0].float()
        run: Callable[[Tensor], Tensor]
        if machine.runs("dnnl"):
            run = GridLinear(weight.values, scale, bias, grid)
        else:
            added = None if bias is None else bias.float().contiguous().to(machine.device)
            run = OnGrid(kernel.build(IntegerLayer("linear", weight.values, scale, added, grid, None)), grid)
        return Computed(run, (weight.values.shape[0], weight.values.shape[1]), f"{kernel.name} static")


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
