"""Weights of 8 or 4 bits that a compiled kernel reads once for a few tokens, with activations that are rounded as they come."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn

from engine.kernels.jit import probe
from engine.kernels.jit.compiler import missing
from engine.kernels.matrix.base import Asked
from engine.kernels.matrix.compiled import Int4, Int8, widens
from engine.kernels.matrix.computed import Computed
from engine.kernels.matrix.nibbles import Nibbles, group_of
from engine.kernels.matrix.on_int8 import on_int8
from engine.kernels.matrix.weight_only import ROWS
from engine.kernels.probe import Machine
from engine.numerics.qtensor import QTensor
from engine.numerics.quantized_matrix import QuantizedMatrix
from engine.numerics.scheme import WeightScheme
from engine.recipe.spec import ActivationSpec


class _Compiled(ABC):
    """int8 of one scale a row, and up to 4 bits in groups. Needs llvmlite."""

    storage_only = False

    @abstractmethod
    def unasked(self, asked: Asked) -> str | None:
        """Why a matrix is not meant for this way of rounding activations, or None."""

    @abstractmethod
    def rounding(self, matrix: QuantizedMatrix) -> ActivationSpec | None:
        """How the recipe wants activations to be rounded."""

    def label(self, asked: Asked, machine: Machine) -> str:
        return f"compiled int{_bits(asked.weights, asked.shape[1])}"

    def refuses(self, asked: Asked, machine: Machine) -> str | None:
        if asked.kind == "Embedding" or (why := self.unasked(asked)) is not None:
            return "no matrix" if asked.kind == "Embedding" else why
        if asked.weights.format.levels:
            return f"no kernel here multiplies {asked.weights.format.name}"
        if machine.device != "cpu":
            return "it computes on processors"
        if "AVX" not in machine.isa:
            return f"it is written for AVX2 and AVX-512, not {machine.isa}"
        bits = _bits(asked.weights, asked.shape[1])
        if bits == 4 and not group_of(asked.weights, asked.shape[1]):
            return f"groups of {asked.weights.size(asked.shape[1])} in {asked.shape[1]} inputs"
        if bits == 8 and not asked.int8:
            return "no int8 of one scale a row"
        return missing() or probe.unfit()

    def computed(self, weight: QTensor) -> Tensor:
        return Nibbles().computed(weight) if _narrow(weight) else on_int8(weight).dequantize()

    def build(self, matrix: QuantizedMatrix, bias: Tensor | None, machine: Machine) -> nn.Module:
        weight, asked = matrix.weight, self.rounding(matrix)
        shape = (weight.codes.shape[0], weight.codes.shape[1])
        narrow = _narrow(weight)
        run = Int4(weight, bias, asked) if narrow else Int8(on_int8(weight), bias, asked)
        return Computed(run, shape, f"compiled int{4 if narrow else 8}")


class Streamed(_Compiled):
    """With float activations, which are rounded to 16 bits, in groups."""

    def unasked(self, asked: Asked) -> str | None:
        return None if asked.activations is None else "no matrix with float activations"

    def rounding(self, matrix: QuantizedMatrix) -> ActivationSpec | None:
        return None

    def note(self, asked: Asked, machine: Machine) -> str | None:
        narrow = _bits(asked.weights, asked.shape[1]) == 4
        stored = (
            "scales are bfloat16" if narrow else "" if asked.weights.bits == 8 else f"stored with {asked.weights.bits} bits, held as int8"
        )
        tokens = f" for up to {ROWS} tokens at once" if widens() else ""
        return "; ".join(filter(None, (stored, f"activations are rounded to 16 bits a group{tokens}")))


class StreamedIntegers(_Compiled):
    """With activations of up to 8 bits, a scale for each token or each group of one, whose sums are exact on every processor: what a
    recipe asks of activations is what is computed, of a prompt too."""

    def unasked(self, asked: Asked) -> str | None:
        activations = asked.activations
        if activations is None or activations.format or not activations.dynamic:
            return "no matrix whose activations are integers that are rounded as they come"
        size = activations.group_size
        return f"activations in groups of {size} of {asked.shape[1]}" if size and asked.shape[1] % size else None

    def rounding(self, matrix: QuantizedMatrix) -> ActivationSpec | None:
        return matrix.activations

    def label(self, asked: Asked, machine: Machine) -> str:
        assert asked.activations is not None
        return f"{super().label(asked, machine)} × int{asked.activations.bits}"

    def note(self, asked: Asked, machine: Machine) -> str | None:
        if _bits(asked.weights, asked.shape[1]) == 4:
            return "scales are bfloat16"
        return None if asked.weights.bits == 8 else f"stored with {asked.weights.bits} bits, computed as int8"


def _bits(weights: WeightScheme, inputs: int) -> int:
    return 4 if weights.bits <= 4 and group_of(weights, inputs) else 8


def _narrow(weight: QTensor) -> bool:
    return _bits(weight.scheme, weight.codes.shape[1]) == 4
