"""What kernels of int8 weights and integer activations have in common, whichever way the activations are rounded."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

from torch import Tensor, nn

from engine.kernels.base import Kernel
from engine.kernels.choose import kernels_for, why_simulated
from engine.kernels.matrix.base import Asked
from engine.kernels.matrix.computed import Computed
from engine.kernels.matrix.on_int8 import on_int8
from engine.kernels.probe import Machine
from engine.numerics.float_activations import simulated
from engine.numerics.qtensor import QTensor
from engine.numerics.quantized_matrix import QuantizedMatrix


class Integers(ABC):
    """On the first integer kernel that runs here, or simulated. Weights of low bits are stored packed and computed as int8."""

    word: str
    dynamic: bool

    def __init__(self, simulated: bool = False) -> None:
        self.storage_only = simulated

    @abstractmethod
    def function(self, weight: QTensor, matrix: QuantizedMatrix, bias: Tensor | None, machine: Machine) -> Callable[[Tensor], Tensor]:
        """(..., in) to (..., out) in float32. ``weight`` is ``matrix.weight`` in int8 with one scale for each output; it and ``bias``
        are on the machine's device."""

    def name(self, machine: Machine) -> str:
        """What sums the integers."""
        return first(machine).name

    def label(self, asked: Asked, machine: Machine) -> str:
        return f"{self.name(machine)} {self.word}{'' if asked.int8 else ' on int8'}"

    def unasked(self, asked: Asked) -> str | None:
        """Why a matrix is not meant for this way of rounding, or None."""
        if asked.activations is not None and simulated(asked.activations):
            return "activations are floats of few bits, or integers in groups"
        if asked.kind != "Embedding" and asked.activations is not None and asked.activations.dynamic == self.dynamic:
            return None
        return "activations are not rounded as they come" if self.dynamic else "activations have no fixed grid"

    def refuses(self, asked: Asked, machine: Machine) -> str | None:
        if (wrong := self.unasked(asked)) is not None:
            return wrong
        if machine.integer == self.storage_only:
            return "integer kernels run here" if machine.integer else "no integer kernel runs here"
        return None

    def note(self, asked: Asked, machine: Machine) -> str | None:
        assert asked.activations is not None
        found = [] if not self.storage_only or (why := why_simulated(machine)) is None else [why]
        if not asked.int8:
            found.append("computed as int8 with one scale for each output: the weights are rounded once more")
        elif asked.weights.bits < 8:
            found.append(f"stored with {asked.weights.bits} bits, computed as int8")
        if bits_of(asked.activations.bits, machine) < asked.activations.bits:
            found.append("activations have 7 bits here: sums of 8-bit products saturate on this processor")
        return "; ".join(found) or None

    def computed(self, weight: QTensor) -> Tensor:
        return on_int8(weight).dequantize()

    def build(self, matrix: QuantizedMatrix, bias: Tensor | None, machine: Machine) -> nn.Module:
        weight = on_int8(matrix.weight).to(machine.device)
        bias = None if bias is None else bias.to(machine.device)
        out, given = weight.codes.shape
        return Computed(self.function(weight, matrix, bias, machine), (out, given), f"{self.name(machine)} {self.word}")


def first(machine: Machine) -> Kernel:
    """The kernel that computes here."""
    return kernels_for(machine)[0]


def bits_of(asked: int, machine: Machine) -> int:
    """Bits of activations that are exact here."""
    return min(asked, machine.activation_bits)
