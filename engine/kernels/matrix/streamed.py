"""Weights of 8 or 4 bits that a compiled kernel reads once for a few tokens, with activations in float32 or 16-bit integers."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.kernels.jit import probe
from engine.kernels.jit.compiler import missing
from engine.kernels.matrix.base import Asked
from engine.kernels.matrix.computed import Computed
from engine.kernels.matrix.nibbles import Nibbles, group_of, packed
from engine.kernels.matrix.on_int8 import on_int8
from engine.kernels.matrix.weight_only import ROWS, by_slices, wide
from engine.kernels.probe import Machine
from engine.numerics.qtensor import QTensor
from engine.numerics.quantized_matrix import QuantizedMatrix

_INPUTS = 16
_SLICE = 1 << 22
_MIDDLE = 8


class Streamed:
    """int8 of one scale a row, and up to 4 bits in groups. More than ``ROWS`` tokens are computed on weights that are widened slice by
    slice: then arithmetic is what takes time. Needs llvmlite."""

    storage_only = False

    def label(self, asked: Asked, machine: Machine) -> str:
        return f"compiled int{_bits(asked)}"

    def refuses(self, asked: Asked, machine: Machine) -> str | None:
        if asked.kind == "Embedding" or asked.activations is not None:
            return "no matrix with float activations"
        if asked.weights.format.levels:
            return f"no kernel here multiplies {asked.weights.format.name}"
        if machine.device != "cpu":
            return "it computes on processors"
        if "AVX" not in machine.isa:
            return f"it is written for AVX2 and AVX-512, not {machine.isa}"
        if _bits(asked) == 4 and not group_of(asked.weights, asked.shape[1]):
            return f"groups of {asked.weights.size(asked.shape[1])} in {asked.shape[1]} inputs"
        if _bits(asked) == 8 and not asked.int8:
            return "no int8 of one scale a row"
        return missing() or probe.unfit()

    def note(self, asked: Asked, machine: Machine) -> str | None:
        if _bits(asked) == 4:
            return f"scales are bfloat16, activations are rounded to 16 bits a group for up to {ROWS} tokens at once"
        return None if asked.weights.bits == 8 else f"stored with {asked.weights.bits} bits, held as int8"

    def computed(self, weight: QTensor) -> Tensor:
        return Nibbles().computed(weight) if _narrow(weight) else on_int8(weight).dequantize()

    def build(self, matrix: QuantizedMatrix, bias: Tensor | None, machine: Machine) -> nn.Module:
        weight = matrix.weight
        shape = (weight.codes.shape[0], weight.codes.shape[1])
        narrow = _narrow(weight)
        return Computed(Int4(weight, bias) if narrow else Int8(on_int8(weight), bias), shape, f"compiled int{4 if narrow else 8}")


def _bits(asked: Asked) -> int:
    return 4 if asked.weights.bits <= 4 and group_of(asked.weights, asked.shape[1]) else 8


def _narrow(weight: QTensor) -> bool:
    return weight.scheme.bits <= 4 and bool(group_of(weight.scheme, weight.codes.shape[1]))


class Int8:
    """(..., in) to (..., out) in float32."""

    def __init__(self, weight: QTensor, bias: Tensor | None) -> None:
        from engine.kernels.jit.products import Product

        self._lacking = -weight.codes.shape[1] % _INPUTS
        self.weight, self._scale = F.pad(weight.codes, (0, self._lacking)).contiguous(), weight.channel_scale.contiguous()
        self._bias = None if bias is None else bias.float()
        self._product = Product(self.weight, self._scale, self._bias)
        self._wide = wide("cpu")

    def __call__(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        rows = F.pad(rows, (0, self._lacking)) if self._lacking else rows
        if len(rows) <= ROWS:
            return self._product(rows.float()).view(*x.shape[:-1], -1)
        count = max(_SLICE // self.weight.shape[1], 1)
        y = by_slices(rows.to(self._wide), len(self.weight), count, lambda at: self.weight[at].to(self._wide))
        y = torch.mul(y, self._scale)
        return (y if self._bias is None else y.add_(self._bias)).view(*x.shape[:-1], -1)


class Int4:
    """As ``Int8``, on nibbles with a step and an offset for each group."""

    def __init__(self, weight: QTensor, bias: Tensor | None) -> None:
        from engine.kernels.jit.products import Product, interleaved

        self._size = group_of(weight.scheme, weight.codes.shape[1])
        codes, scales = packed(weight, self._size)
        step = scales[..., 0].t().contiguous()
        self._added = scales[..., 1].t().contiguous()
        self._weight, self._step = interleaved(codes, self._size), step
        self._bias = None if bias is None else bias.float()
        self._product = Product(self._weight, step, self._bias, self._added)
        self._wide = wide("cpu")

    def __call__(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        if len(rows) <= ROWS:
            return self._product(rows.float()).view(*x.shape[:-1], -1)
        count = max(_SLICE // x.shape[-1], 1)
        y = by_slices(rows.to(self._wide), len(self._weight), count, self._widened)
        return (y.float() if self._bias is None else y.float().add_(self._bias)).view(*x.shape[:-1], -1)

    def _widened(self, at: slice) -> Tensor:
        from engine.kernels.jit.products import codes_of

        codes = codes_of(self._weight[at], self._size).view(-1, self._step.shape[1], self._size)
        codes = codes.float().sub_(_MIDDLE)
        found = torch.addcmul(self._added[at, :, None].float(), codes, self._step[at, :, None].float())
        return found.flatten(1).to(self._wide)
