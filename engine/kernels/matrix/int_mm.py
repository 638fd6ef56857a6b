"""int8 weights and int8 activations on a GPU, rounded for each token as it comes or to a grid that calibration has fixed."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from engine.kernels.dnnl.dynamic import TINY
from engine.kernels.gpu.probe import FEW_ROWS, INT_MM, MOST, IntegerMatrix
from engine.kernels.matrix.base import Asked
from engine.kernels.matrix.integers import Integers, bits_of
from engine.kernels.probe import Machine
from engine.numerics.formats import round_to_
from engine.numerics.qparams import QParams
from engine.numerics.qtensor import QTensor
from engine.numerics.quantized_matrix import QuantizedMatrix

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

    def note(self, asked: Asked, machine: Machine) -> str | None:
        said = None if machine.kernels.get(FEW_ROWS, "not probed") else "a few tokens are summed by a kernel of Triton's"
        return "; ".join(filter(None, (super().note(asked, machine), said))) or None

    def function(self, weight: QTensor, matrix: QuantizedMatrix, bias: Tensor | None, machine: Machine) -> Callable[[Tensor], Tensor]:
        few = machine.kernels.get(FEW_ROWS, "not probed") is None
        if self.dynamic:
            assert matrix.activations is not None
            return ScaledSums(weight, bias, bits_of(matrix.activations.bits, machine), machine.device, few)
        assert matrix.grid is not None, "a matrix whose activations are not dynamic has their grid"
        return ScaledSums(weight, bias, matrix.grid, machine.device, few)


class ScaledSums:
    """(..., in) to (..., out) in float32 on ``device``. Activations are rounded to int8: with so many bits by the largest of
    each token, or to a grid. With ``few``, some rows alone are computed by ``few_rows``."""

    def __init__(self, weight: QTensor, bias: Tensor | None, rounding: int | QParams, device: str, few: bool = False) -> None:
        self._run, self._rounding, self._few = IntegerMatrix(weight.codes, device), rounding, few
        self._scale = weight.channel_scale.to(device)
        self._bias = None if bias is None else bias.float().to(device)
        if isinstance(rounding, QParams):
            # Codes of a grid begin at 0; shifted by 128 they are int8, and the sums lack this for each step of the activations.
            shift = _MIDDLE - rounding.zero_point
            self._lacking = (shift * weight.codes.sum(1, dtype=torch.int32)).float().to(device)
            self._steps = self._scale * rounding.scale

    def __call__(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        return (self._one_by_one if self._few and len(rows) <= MOST else self._together)(rows).view(*x.shape[:-1], -1)

    def _together(self, rows: Tensor) -> Tensor:
        # For a single token each operation costs as much as the product does.
        how = self._rounding
        if isinstance(how, QParams):
            codes = round_to_(rows.mul(1.0 / how.scale), -_MIDDLE, how.qmax - _MIDDLE, how.zero_point - _MIDDLE)
            y, scale = torch.add(self._run(codes.to(torch.int8)), self._lacking), self._steps
        else:
            step = torch.linalg.vector_norm(rows, torch.inf, 1, keepdim=True).clamp_min_(TINY).div_(_top(how))
            y, scale = torch.mul(self._run(torch.div(rows, step).round_().to(torch.int8)), step), self._scale
        return y.mul_(scale) if self._bias is None else torch.addcmul(self._bias, y, scale)

    def _one_by_one(self, rows: Tensor) -> Tensor:
        from engine.kernels.gpu.few_rows import by_token, on_grid

        how, given = self._rounding, (rows, self._run.weight, self._scale, self._bias)
        if isinstance(how, QParams):
            return on_grid(*given, how.scale, -how.zero_point, how.qmax - how.zero_point)
        return by_token(*given, _top(how), TINY)


def _top(bits: int) -> int:
    return (1 << (bits - 1)) - 1
