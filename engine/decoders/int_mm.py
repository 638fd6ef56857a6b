"""int8 weights and int8 activations on a GPU, rounded for each token as it comes or to a grid that calibration has fixed."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from engine.decoders.integers import Integers, bits_of
from engine.decoders.kernel import Asked
from engine.decoders.quantized import QuantizedMatrix
from engine.kernels.dnnl.dynamic import TINY
from engine.kernels.gpu import INT_MM, IntegerMatrix
from engine.kernels.probe import Machine
from engine.quant.grouped import GroupedWeight
from engine.quant.numerics import QParams, quantize

_MIDDLE = 128


class IntMM(Integers):
    """torch's ``_int_mm``. It takes more than 16 rows: a single token is computed among rows of zeros."""

    def __init__(self, dynamic: bool) -> None:
        super().__init__()
        self.word, self.dynamic = "dynamic" if dynamic else "static", dynamic

    def name(self, machine: Machine) -> str:
        return INT_MM

    def refuses(self, asked: Asked, machine: Machine) -> str | None:
        if machine.device == "cpu":
            return "the model is on the processor"
        wrong = self.unasked(asked)
        return machine.kernels.get(INT_MM, "not probed") if wrong is None else wrong

    def function(self, weight: GroupedWeight, matrix: QuantizedMatrix, bias: Tensor | None, machine: Machine) -> Callable[[Tensor], Tensor]:
        if self.dynamic:
            assert matrix.activations is not None
            return ScaledSums(weight, bias, bits_of(matrix.activations.bits, machine), machine.device)
        assert matrix.grid is not None, "a matrix whose activations are not dynamic has their grid"
        return ScaledSums(weight, bias, matrix.grid, machine.device)


class ScaledSums:
    """(..., in) to (..., out) in float32 on ``device``. Activations are rounded to int8: with so many bits by the largest of
    each token, or to a grid."""

    def __init__(self, weight: GroupedWeight, bias: Tensor | None, rounding: int | QParams, device: str) -> None:
        self._run, self._rounding = IntegerMatrix(weight.values, device), rounding
        self._scale = weight.scale[:, 0].float().to(device)
        self._bias = None if bias is None else bias.float().to(device)
        # Codes of a grid begin at 0; shifted by 128 they are int8, and the sums lack this for each step of the activations.
        shift = 0 if isinstance(rounding, int) else _MIDDLE - rounding.zero_point
        self._lacking = (shift * weight.values.sum(1, dtype=torch.int32)).float().to(device)

    def __call__(self, x: Tensor) -> Tensor:
        rows, how = x.reshape(-1, x.shape[-1]), self._rounding
        if isinstance(how, int):
            step = torch.amax(rows.abs(), 1, keepdim=True).clamp_min_(TINY).div_(2 ** (how - 1) - 1)
            y = self._run(torch.div(rows, step).round_().to(torch.int8)).float().mul_(step).mul_(self._scale)
        else:
            codes = (quantize(rows, how).to(torch.int16) - _MIDDLE).to(torch.int8)
            y = self._run(codes).float().add_(self._lacking).mul_(how.scale).mul_(self._scale)
        return (y if self._bias is None else y.add_(self._bias)).view(*x.shape[:-1], -1)
