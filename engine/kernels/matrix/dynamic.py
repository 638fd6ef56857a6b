"""int8 weights with activations that are rounded for each token as it comes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from engine.kernels.base import IntegerLayer, LayerFunction
from engine.kernels.dnnl.dynamic import TINY, DynamicLinear
from engine.kernels.matrix.integers import Integers, bits_of, first
from engine.kernels.probe import Machine
from engine.numerics.qparams import QParams
from engine.numerics.qtensor import QTensor
from engine.numerics.quantized_matrix import QuantizedMatrix


class Dynamic(Integers):
    """oneDNN's own primitives scale each row; on the others integers are summed, and scaled behind them."""

    word, dynamic = "dynamic", True

    def function(self, weight: QTensor, matrix: QuantizedMatrix, bias: Tensor | None, machine: Machine) -> Callable[[Tensor], Tensor]:
        assert matrix.activations is not None
        bits, scale = bits_of(matrix.activations.bits, machine), weight.channel_scale
        if machine.runs("dnnl"):
            return DynamicLinear(weight.codes, scale, bias, bits=bits)
        return PerToken(first(machine).build, weight.codes, scale, bias, bits)


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
