"""int8 weights with activations that are rounded for each token as it comes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from engine.decoders.computed import Computed
from engine.decoders.kernel import Asked
from engine.decoders.on_int8 import on_int8
from engine.decoders.quantized import QuantizedMatrix
from engine.kernels.base import IntegerLayer, LayerFunction
from engine.kernels.choose import kernels_for, why_simulated
from engine.kernels.dnnl.dynamic import TINY, DynamicLinear
from engine.kernels.gpu import INT_MM
from engine.kernels.probe import Machine
from engine.quant.grouped import GroupedWeight
from engine.quant.numerics import QParams


class Dynamic:
    """On oneDNN, kept primitives first; without it on the integer kernels of torch, or simulated. Weights of low bits are stored
    packed and computed as int8."""

    def __init__(self, simulated: bool = False) -> None:
        self.storage_only = simulated

    def label(self, asked: Asked, machine: Machine) -> str:
        name = "dnnl dynamic" if machine.runs("dnnl") else f"{kernels_for(machine)[0].name} dynamic"
        return name + ("" if asked.int8 else " on int8")

    def refuses(self, asked: Asked, machine: Machine) -> str | None:
        if asked.kind == "Embedding" or asked.activations is None or not asked.activations.dynamic:
            return "activations are not rounded as they come"
        if machine.integer == self.storage_only:
            return "integer kernels run here" if machine.integer else "no integer kernel runs here"
        return None

    def note(self, asked: Asked, machine: Machine) -> str | None:
        return notes(asked, machine)

    def computed(self, weight: GroupedWeight) -> Tensor:
        return on_int8(weight).dequantize()

    def build(self, matrix: QuantizedMatrix, bias: Tensor | None, machine: Machine) -> nn.Module:
        assert matrix.activations is not None
        weight = on_int8(matrix.weight).to(machine.device)
        bias = None if bias is None else bias.to(machine.device)
        bits, scale = bits_of(matrix.activations.bits, machine), weight.scale[:, 0].float()
        run: Callable[[Tensor], Tensor]
        if machine.runs("dnnl"):
            run, name = DynamicLinear(weight.values, scale, bias, bits=bits), "dnnl dynamic"
        else:
            kernel = kernels_for(machine)[0]
            run, name = PerToken(kernel.build, weight.values, scale, bias, bits), f"{kernel.name} dynamic"
        return Computed(run, (weight.values.shape[0], weight.values.shape[1]), name)


def notes(asked: Asked, machine: Machine) -> str | None:
    """What is to be known of integer activations and weights before they are chosen."""
    assert asked.activations is not None
    found = [] if machine.kernels.get(INT_MM, "") is None or (why := why_simulated(machine)) is None else [why]
    if not asked.int8:
        found.append("computed as int8 with one scale for each output: the weights are rounded once more")
    elif asked.weights.bits < 8:
        found.append(f"stored with {asked.weights.bits} bits, computed as int8")
    if bits_of(asked.activations.bits, machine) < asked.activations.bits:
        found.append("activations have 7 bits here: sums of 8-bit products saturate on this processor")
    return "; ".join(found) or None


def bits_of(asked: int, machine: Machine) -> int:
    """Bits of activations that are exact here."""
    return min(asked, machine.activation_bits)


class PerToken:
    """A kernel for one grid, used with one scale for each row: it sums integers, and the scales are applied behind it."""

    def __init__(
        self, build: Callable[[IntegerLayer], LayerFunction], weight: Tensor, scale: Tensor, bias: Tensor | None, bits: int
    ) -> None:
        self._top, self._bias = 2 ** (bits - 1) - 1, bias
        self._zero = self._top + 1
        self._run = build(IntegerLayer("linear", weight, scale, None, QParams(1.0, self._zero, 2 * self._zero - 1), None))

    def __call__(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        step = torch.amax(rows.abs(), 1, keepdim=True).clamp_min_(TINY).div_(self._top)
        integers = torch.div(rows, step).round_().add_(self._zero).to(torch.uint8).contiguous()
        y = self._run(integers).mul_(step)
        return (y if self._bias is None else y.add_(self._bias)).view(*x.shape[:-1], -1)
