"""Matrices that are small on disk alone: they are float32 again while the model runs."""

from __future__ import annotations

from torch import Tensor

from engine.kernels.matrix.base import Asked, form_name
from engine.kernels.probe import Machine
from engine.numerics.qtensor import QTensor
from engine.numerics.quantized_matrix import QuantizedMatrix


class Stored:
    """The last resort for float activations: transformers' own layer in float32, on the weights that the integers stand for."""

    storage_only = True

    def label(self, asked: Asked, machine: Machine) -> str:
        return f"torch fp32, {form_name(asked.weights)} stored"

    def refuses(self, asked: Asked, machine: Machine) -> str | None:
        return None if asked.activations is None else "activations are integers"

    def note(self, asked: Asked, machine: Machine) -> str | None:
        return "small on disk only: in memory and in speed it is float32"

    def computed(self, weight: QTensor) -> Tensor:
        return weight.dequantize()

    def build(self, matrix: QuantizedMatrix, bias: Tensor | None, machine: Machine) -> None:
        return None
