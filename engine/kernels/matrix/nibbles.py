"""Weights of up to 4 bits that stay so in memory, multiplied with activations in bfloat16."""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.kernels.gpu.probe import INT4PACK, nibbles_mm, pack_nibbles
from engine.kernels.matrix.base import Asked
from engine.kernels.matrix.computed import Computed
from engine.kernels.probe import Machine
from engine.numerics.qtensor import QTensor
from engine.numerics.quantized_matrix import QuantizedMatrix
from engine.numerics.scheme import WeightScheme, int_scheme
from engine.numerics.weights import WeightQParams, minmax, quantize

# Groups that the kernel has, largest first; it takes outputs by sixteens.
_GROUPS, _OUTPUTS = (256, 128, 64, 32), 16
_MIDDLE = 8


class Nibbles:
    """torch's ``_weight_int4pack_mm``, on the processor ``_weight_int4pack_mm_for_cpu``. Its weights are ``(q - 8) * scale + zero``
    with both in bfloat16, whose 8 bits of mantissa the activations and the result have too. Wider groups than it knows, and
    whole rows, are divided."""

    storage_only = False

    def label(self, asked: Asked, machine: Machine) -> str:
        return "int4pack bf16"

    def refuses(self, asked: Asked, machine: Machine) -> str | None:
        if asked.kind == "Embedding" or asked.activations is not None:
            return "no matrix with float activations"
        if asked.weights.format.levels:
            return f"no kernel here multiplies {asked.weights.format.name}"
        if asked.weights.bits > 4:
            return f"{asked.weights.bits} bits are no nibble"
        if not group_of(asked.weights, asked.shape[1]):
            groups = f"groups of {asked.weights.size(asked.shape[1])} in {asked.shape[1]} inputs"
            return f"the kernel for 4-bit weights takes multiples of {_GROUPS[-1]}, not {groups}"
        if machine.device != "cpu":
            wrong = machine.kernels.get(INT4PACK, "not probed")
            return wrong and f"torch's kernel for 4-bit weights does not run on this GPU: {wrong}"
        if "AVX" not in machine.isa:
            return f"torch has no vectorized kernel for 4-bit weights on {machine.isa}"
        return _unfit()

    def note(self, asked: Asked, machine: Machine) -> str | None:
        return "activations and scales are bfloat16"

    def computed(self, weight: QTensor) -> Tensor:
        size = group_of(weight.scheme, weight.codes.shape[1])
        codes, scales = packed(weight, size)
        step, zero = (scales[..., i].float().t().repeat_interleave(size, 1) for i in (0, 1))
        return (codes - _MIDDLE).float().mul_(step).add_(zero)

    def build(self, matrix: QuantizedMatrix, bias: Tensor | None, machine: Machine) -> nn.Module:
        weight = matrix.weight
        run = PackedNibbles(weight, bias, machine.device)
        return Computed(run, (weight.codes.shape[0], weight.codes.shape[1]), "int4pack bf16")


class PackedNibbles:
    """(..., in) to (..., out) in float32, on ``device``."""

    def __init__(self, weight: QTensor, bias: Tensor | None, device: str = "cpu") -> None:
        self._out, self._bias = weight.codes.shape[0], None if bias is None else bias.to(device)
        self._size = group_of(weight.scheme, weight.codes.shape[1])
        codes, scales = packed(weight, self._size)
        lacking = -self._out % _OUTPUTS
        codes = F.pad(codes, (0, 0, 0, lacking)).to(device)
        self._here = device == "cpu"
        self._packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes, 1) if self._here else pack_nibbles(codes)
        self._scales = F.pad(scales, (0, 0, 0, lacking)).contiguous().to(device)

    def __call__(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[-1]).to(torch.bfloat16).contiguous()
        multiply = torch.ops.aten._weight_int4pack_mm_for_cpu if self._here else nibbles_mm
        y: Tensor = multiply(rows, self._packed, self._size, self._scales)
        y = y[:, : self._out].to(torch.float32)
        y = y if self._bias is None else y.add_(self._bias)
        return y.reshape(*x.shape[:-1], self._out)


def packed(weight: QTensor, size: int) -> tuple[Tensor, Tensor]:
    """Codes 0..15 in int32 (out, in), and (groups, out, 2) in bfloat16: the step of each group of ``size``, and what is added."""
    step, zero = (column[:, ::size] for column in WeightQParams.of(weight).columns(weight.codes.shape[1]))
    codes, step = weight.codes.to(torch.int32), step.to(torch.bfloat16).float()
    if weight.scheme.bits < 4 or weight.zero is None:
        # The distance from zero is a nibble itself: nothing has to be added.
        codes = codes - zero.to(torch.int32).repeat_interleave(size, 1) + _MIDDLE
        added = torch.zeros_like(step)
    else:
        added = (_MIDDLE - zero) * step
    return codes, torch.stack([step.t(), added.t()], 2).to(torch.bfloat16).contiguous()


def group_of(spec: WeightScheme, inputs: int) -> int:
    """The largest group of the kernel that divides the grid's and the inputs; 0 where there is none."""
    whole = spec.groups(inputs) == 1
    return next((size for size in _GROUPS if inputs % size == 0 and (whole or spec.size(inputs) % size == 0)), 0)


@lru_cache(maxsize=1)
def _unfit() -> str | None:
    """Why the kernel cannot be used here, or None: its schema is private to torch."""
    draw = torch.Generator().manual_seed(0)
    weight, spec = torch.randn(32, 128, generator=draw), int_scheme(4, 64, False)
    rounded = quantize(weight, minmax(weight, spec))
    x = torch.randn(3, 128, generator=draw)
    exact = x.double() @ rounded.dequantize().double().T
    try:
        got = PackedNibbles(rounded, None)(x)
    except (RuntimeError, AttributeError, NotImplementedError):
        return "this torch has no kernel for 4-bit weights"
    error = ((got.double() - exact).abs().max() / exact.abs().max()).item()
    return None if error < 0.02 else f"torch's kernel for 4-bit weights is off by {error:.0%} here"
