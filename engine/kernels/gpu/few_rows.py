"""A few rows of activations times a matrix of integers on a GPU, each in one kernel of Triton's.

A single token reads every weight once: what counts is how many bytes they have, and how many kernels are launched. Activations are
float32, rounded inside the kernel where they are rounded at all, and products are summed in float32 or, of integers, in int32.
"""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from engine.kernels.gpu import few_rows_triton as programs

_WARPS = 4
_INPUTS = 1024
# Enough programs to fill the largest GPU some times over.
_PROGRAMS = 512
# Added to a float32 of less than 2^22 and taken away again, it rounds to the nearest integer, halves to even.
_ROUND = 12582912.0


def floats(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
    """float32 (rows, in) times ``weight * scale`` plus ``bias``, float32 (rows, out). ``weight`` is int8 (out, in), rows may lie
    further apart; ``scale`` and ``bias`` float32 (out,)."""
    y, outputs, inputs = _empty(x, len(scale)), len(scale), x.shape[1]
    programs.floats[_programs(x, outputs)](
        x.contiguous(), weight, scale, scale if bias is None else bias, y, inputs, outputs, weight.stride(0), bias is not None,
        _weight_rows(outputs), _columns(inputs), num_warps=_WARPS,
    )  # fmt: skip
    return y


def by_token(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None, top: int, least: float) -> Tensor:
    """As ``floats``, with each row of ``x`` rounded to -``top``..``top`` by its largest magnitude, which counts as ``least`` at least."""
    return _integers(x, weight, scale, bias, least, -top, top, True)


def on_grid(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None, step: float, low: int, high: int) -> Tensor:
    """As ``floats``, with ``x`` rounded to ``low``..``high`` steps."""
    return _integers(x, weight, scale, bias, step, low, high, False)


def in_halves(codes: Tensor, group: int) -> Tensor:
    """Codes 0..15, uint8 (out, in), two to a byte as ``nibbles`` reads them: the second half of each ``group`` above the first, so
    that neighbouring bytes meet neighbouring activations. Groups are powers of two from 32 on and divide ``in``."""
    first, second = codes.reshape(len(codes), -1, 2, group // 2).unbind(2)
    return (first | second << 4).reshape(len(codes), -1).contiguous()


def nibbles(x: Tensor, packed: Tensor, scale: Tensor, zero: Tensor, bias: Tensor | None = None) -> Tensor:
    """float32 (rows, in) times ``(codes - zero) * scale`` plus ``bias``, float32 (rows, out). ``packed`` is uint8 (out, in / 2) of
    ``in_halves``; ``scale`` float16 and ``zero`` uint8 (out, groups)."""
    outputs, groups = scale.shape
    x, y, grid, half, rows = x.contiguous(), _empty(x, outputs), _programs(x, outputs), packed.shape[1] // groups, _weight_rows(outputs)
    together = max(min(triton.next_power_of_2(groups), _INPUTS // (2 * half)), 1)
    programs.nibbles[grid](
        x, packed, scale, zero, packed if bias is None else bias, y, outputs, groups, bias is not None, rows, together, half,
        num_warps=_WARPS,
    )  # fmt: skip
    return y


def widen(packed: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    """The weights of ``nibbles`` in bfloat16, (out, in)."""
    y = torch.empty(len(packed), 2 * packed.shape[1], dtype=torch.bfloat16, device=packed.device)
    half = packed.numel() // scale.numel()
    together = max(_INPUTS // half, 1)
    programs.widen[(triton.cdiv(scale.numel(), together),)](packed, scale, zero, y, scale.numel(), together, half, num_warps=_WARPS)
    return y


def _integers(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None, step: float, low: int, high: int, dynamic: bool) -> Tensor:
    y, outputs, inputs = _empty(x, len(scale)), len(scale), x.shape[1]
    programs.rounded[_programs(x, outputs)](
        x.contiguous(), weight, scale, scale if bias is None else bias, y, inputs, outputs, weight.stride(0), step, float(low),
        float(high), _ROUND, dynamic, bias is not None, _weight_rows(outputs), _columns(inputs), num_warps=_WARPS,
    )  # fmt: skip
    return y


def _empty(x: Tensor, outputs: int) -> Tensor:
    return torch.empty(len(x), outputs, dtype=torch.float32, device=x.device)


def _programs(x: Tensor, outputs: int) -> tuple[int, int]:
    return triton.cdiv(outputs, _weight_rows(outputs)), len(x)


def _weight_rows(outputs: int) -> int:
    """Rows of the weight in a program: many meet the same activations, few leave programs for the whole GPU."""
    return next((rows for rows in (8, 4) if outputs >= rows * _PROGRAMS), 2)


def _columns(inputs: int) -> int:
    return min(int(triton.next_power_of_2(inputs)), _INPUTS)
