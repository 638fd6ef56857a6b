"""Activations in floats of few bits, or in integers with a scale for each group of a token: their error is exact on any device, and their
speed that of float32."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.kernels.matrix.base import Asked, form_name
from engine.kernels.matrix.computed import Computed
from engine.kernels.probe import Machine
from engine.kernels.simulate import Simulate
from engine.numerics.float_activations import round_floats, simulated
from engine.numerics.qtensor import QTensor
from engine.numerics.quantized_matrix import QuantizedMatrix


class Floats:
    """What ``torch._scaled_mm`` of a GPU computes, in float32: products of values with 4 bits of mantissa are exact there."""

    storage_only = True

    def label(self, asked: Asked, machine: Machine) -> str:
        assert asked.activations is not None
        return f"{Simulate.name} {asked.activations.format or f'int{asked.activations.bits}'}"

    def refuses(self, asked: Asked, machine: Machine) -> str | None:
        if asked.kind == "Embedding" or asked.activations is None or not simulated(asked.activations):
            return "activations are no floats of few bits, nor integers in groups"
        return None

    def note(self, asked: Asked, machine: Machine) -> str | None:
        assert asked.activations is not None
        what = form_name(asked.weights) if asked.activations.format else "activations in groups"
        return f"no kernel here multiplies {what}: the error is that of the GPUs it is for, the speed is float32's"

    def computed(self, weight: QTensor) -> Tensor:
        return weight.dequantize()

    def build(self, matrix: QuantizedMatrix, bias: Tensor | None, machine: Machine) -> nn.Module:
        out, given = matrix.weight.codes.shape
        return Computed(RoundedLinear(matrix, bias, machine.device), (out, given), f"{Simulate.name} floats")


class RoundedLinear:
    """(..., in) to (..., out) in float32, the inputs rounded as the matrix asks."""

    def __init__(self, matrix: QuantizedMatrix, bias: Tensor | None, device: str) -> None:
        assert matrix.activations is not None
        self._weight = matrix.weight.dequantize().to(device)
        self._bias = None if bias is None else bias.float().to(device)
        self._spec, self._step = matrix.activations, None if matrix.grid is None else matrix.grid.scale

    def __call__(self, x: Tensor) -> Tensor:
        return F.linear(round_floats(x.to(torch.float32), self._spec, self._step), self._weight, self._bias)
