"""int8 weights that are multiplied with activations in bfloat16, or with a prompt in float32 where bfloat16 is slow."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.kernels.matrix.base import Asked
from engine.kernels.matrix.computed import Computed
from engine.kernels.matrix.on_int8 import on_int8
from engine.kernels.probe import Machine
from engine.numerics.qtensor import QTensor
from engine.numerics.quantized_matrix import QuantizedMatrix

PACKED, WIDENED = "int8pack bf16", "int8 widened to bf16"
# With more tokens at once than these, weights that are widened for the call are as fast or faster.
ROWS = 16
# Rows of the weight that are wide at a time on the processor; on a GPU so many weights.
_SLICE, _GPU_SLICE = 4096, 1 << 25
# The vectorized kernel reads inputs by sixteens, and reads past the end of others.
_INPUTS = 16


class WeightOnly:
    """torch's ``_weight_int8pack_mm``, whose vectorized form takes bfloat16: activations are rounded to its 8 bits of mantissa, and
    so is the result. A prompt is computed on weights that are widened slice by slice, to bfloat16 where the processor multiplies
    it, else to float32: int8 is exact in both. On a GPU tokens are computed so too: what torch has there under that name is slower."""

    storage_only = False

    def label(self, asked: Asked, machine: Machine) -> str:
        return PACKED if machine.device == "cpu" else WIDENED

    def refuses(self, asked: Asked, machine: Machine) -> str | None:
        if asked.kind == "Embedding" or asked.activations is not None:
            return "no matrix with float activations"
        if asked.weights.format.levels:
            return f"no kernel here multiplies {asked.weights.format.name}"
        if not asked.int8:
            bits = "" if asked.weights.bits == 8 else f"{asked.weights.bits}-bit "
            return f"no fast kernel takes {bits}weights with {_form(asked)} and float activations"
        if machine.device != "cpu":
            return None
        if "AVX" not in machine.isa:
            return f"torch has no vectorized kernel for int8 weights and float activations on {machine.isa}"
        return _unfit()

    def note(self, asked: Asked, machine: Machine) -> str | None:
        stored = "" if asked.weights.bits == 8 else f"stored with {asked.weights.bits} bits, held as int8; "
        return f"{stored}activations are bfloat16{'' if wide(machine.device) == torch.bfloat16 else f' for up to {ROWS} tokens at once'}"

    def computed(self, weight: QTensor) -> Tensor:
        return on_int8(weight).dequantize()

    def build(self, matrix: QuantizedMatrix, bias: Tensor | None, machine: Machine) -> nn.Module:
        weight = on_int8(matrix.weight)
        run = Widened(weight.codes, weight.channel_scale, bias, machine.device)
        return Computed(run, (weight.codes.shape[0], weight.codes.shape[1]), PACKED if machine.device == "cpu" else WIDENED)


@lru_cache(maxsize=4)
def wide(device: str) -> torch.dtype:
    """What a prompt is computed in: bfloat16 where ``device`` has instructions for it."""
    if device != "cpu":
        return torch.bfloat16
    supported: Callable[[], bool] | None = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return torch.bfloat16 if supported is not None and supported() else torch.float32


def _form(asked: Asked) -> str:
    return "group scales" if asked.weights.groups(asked.shape[1]) > 1 else "affine scales"


class Widened:
    """(..., in) to (..., out) in float32; ``weight`` int8 (out, in), ``scale`` and ``bias`` float32 (out,), brought to ``device``."""

    def __init__(self, weight: Tensor, scale: Tensor, bias: Tensor | None, device: str = "cpu") -> None:
        self._lacking = -weight.shape[1] % _INPUTS
        self.weight, self.scale = F.pad(weight, (0, self._lacking)).contiguous().to(device), scale.to(device)
        self.bias = None if bias is None else bias.float().to(device)
        self._wide, self._here = wide(device), device == "cpu"
        self._slice = _SLICE if self._here else max(_GPU_SLICE // weight.shape[1], 1)
        # Scales of bfloat16 would move whole rows: the product is scaled behind the kernel.
        self._ones = torch.ones(len(weight), dtype=torch.bfloat16, device=device)

    def __call__(self, x: Tensor) -> Tensor:
        rows = F.pad(x.reshape(-1, x.shape[-1]), (0, self._lacking)) if self._lacking else x.reshape(-1, x.shape[-1])
        if self._here and len(rows) <= ROWS:
            y = torch.ops.aten._weight_int8pack_mm(rows.to(torch.bfloat16).contiguous(), self.weight, self._ones)
        else:
            y = by_slices(rows.to(self._wide), len(self.weight), self._slice, lambda at: self.weight[at].to(self._wide))
        # Of bfloat16 and float32 the product is float32.
        y = torch.mul(y, self.scale)
        return (y if self.bias is None else y.add_(self.bias)).view(*x.shape[:-1], -1)


def by_slices(rows: Tensor, out: int, count: int, widened: Callable[[slice], Tensor]) -> Tensor:
    """``rows`` times a weight of ``out`` rows, of which ``widened`` gives ``count`` at a time: (rows, out)."""
    parts = [F.linear(rows, widened(slice(start, start + count))) for start in range(0, out, count)]
    return parts[0] if len(parts) == 1 else torch.cat(parts, 1)


@lru_cache(maxsize=1)
def _unfit() -> str | None:
    """Why the kernel cannot be used here, or None: its schema is private to torch."""
    draw = torch.Generator().manual_seed(0)
    weight = torch.randint(-127, 128, (64, 96), generator=draw, dtype=torch.int8)
    x = torch.randn(3, 96, generator=draw).to(torch.bfloat16)
    exact = x.double() @ weight.double().T
    try:
        got = torch.ops.aten._weight_int8pack_mm(x, weight, torch.ones(64, dtype=torch.bfloat16))
    except (RuntimeError, AttributeError, NotImplementedError):
        return "this torch has no kernel for int8 weights and float activations"
    error = ((got.double() - exact).abs().max() / exact.abs().max()).item()
    return None if error < 0.01 else f"torch's kernel for int8 weights is off by {error:.0%} here"
