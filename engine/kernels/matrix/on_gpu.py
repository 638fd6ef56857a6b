"""Integer weights and float activations on a GPU: a few tokens in one kernel, a prompt on weights that are widened to bfloat16."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from engine.kernels.gpu.probe import FEW_ROWS, MOST
from engine.kernels.matrix.base import Asked
from engine.kernels.matrix.computed import Computed
from engine.kernels.matrix.nibbles import group_of
from engine.kernels.matrix.on_int8 import on_int8
from engine.kernels.matrix.weight_only import Widened, by_slices
from engine.kernels.probe import Machine
from engine.numerics.qtensor import QTensor
from engine.numerics.quantized_matrix import QuantizedMatrix

# Weights that are wide at a time.
_SLICE = 1 << 25


class OnGpu:
    """int8 with one scale for each output, and up to 4 bits in groups, which stay nibbles in memory."""

    storage_only = False

    def label(self, asked: Asked, machine: Machine) -> str:
        return "triton int8" if asked.int8 and asked.weights.bits > 4 else "triton int4"

    def refuses(self, asked: Asked, machine: Machine) -> str | None:
        if machine.device == "cpu":
            return "the model is on the processor"
        if asked.kind == "Embedding" or asked.activations is not None:
            return "no matrix with float activations"
        if asked.weights.format.levels:
            return f"no kernel here multiplies {asked.weights.format.name}"
        if asked.weights.bits > 4 and not asked.int8:
            return f"{asked.weights.bits} bits are no nibble, and group scales are not int8's"
        if asked.weights.bits <= 4 and not group_of(asked.weights, asked.shape[1]):
            return f"no group of the kernel divides {asked.shape[1]} inputs"
        return machine.kernels.get(FEW_ROWS, "not probed")

    def note(self, asked: Asked, machine: Machine) -> str | None:
        return "a prompt is computed in bfloat16"

    def computed(self, weight: QTensor) -> Tensor:
        if weight.scheme.bits > 4:
            return on_int8(weight).dequantize()
        return weight.dequantize().bfloat16().float()

    def build(self, matrix: QuantizedMatrix, bias: Tensor | None, machine: Machine) -> nn.Module:
        weight, out, given = matrix.weight, *matrix.weight.codes.shape
        if weight.scheme.bits > 4:
            weight = on_int8(weight)
            return Computed(_Int8(weight.codes, weight.channel_scale, bias, machine.device), (out, given), "triton int8")
        return Computed(_Int4(weight, bias, machine.device), (out, given), "triton int4")


class _Int8(Widened):
    def __call__(self, x: Tensor) -> Tensor:
        from engine.kernels.gpu import few_rows

        rows = x.reshape(-1, x.shape[-1])
        if len(rows) > MOST:
            return super().__call__(x)
        return few_rows.floats(rows, self.weight, self.scale, self.bias).view(*x.shape[:-1], -1)


class _Int4:
    """(..., in) to (..., out) in float32, on ``device``."""

    def __init__(self, weight: QTensor, bias: Tensor | None, device: str) -> None:
        from engine.kernels.gpu.few_rows import in_halves

        self._out, inputs = weight.codes.shape
        size = group_of(weight.scheme, inputs)
        codes = (weight.codes.to(torch.int16) - weight.scheme.low).to(torch.uint8)
        self._packed = in_halves(codes, size).to(device)
        times = weight.scheme.size(inputs) // size
        zero = torch.full_like(weight.scale, -weight.scheme.low, dtype=torch.uint8) if weight.zero is None else weight.zero
        self._scale, self._zero = (part.repeat_interleave(times, 1).contiguous().to(device) for part in (weight.scale, zero))
        self._bias = None if bias is None else bias.float().to(device)
        self._rows = max(_SLICE // inputs, 1)

    def __call__(self, x: Tensor) -> Tensor:
        from engine.kernels.gpu import few_rows

        rows = x.reshape(-1, x.shape[-1])
        if len(rows) <= MOST:
            return few_rows.nibbles(rows, self._packed, self._scale, self._zero, self._bias).view(*x.shape[:-1], -1)
        y = by_slices(rows.to(torch.bfloat16), self._out, self._rows, self._wide).to(torch.float32)
        return (y if self._bias is None else y.add_(self._bias)).view(*x.shape[:-1], -1)

    def _wide(self, at: slice) -> Tensor:
        from engine.kernels.gpu.few_rows import widen

        return widen(self._packed[at], self._scale[at], self._zero[at])
