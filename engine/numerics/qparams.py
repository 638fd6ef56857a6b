"""Quantization parameters of activations, which are unsigned and affine: q = clamp(round(x / scale) + zero_point, 0, qmax).

Notation follows Nagel et al. 2021 (arXiv:2106.08295), section 2.2.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.errors import EngineError
from engine.numerics.formats import round_to_


@dataclass(frozen=True)
class QParams:
    """An affine activation grid: ``x = (q - zero_point) * scale`` for q in 0..``qmax``."""

    scale: float
    zero_point: int
    qmax: int = 255

    @property
    def bits(self) -> int:
        return self.qmax.bit_length()


def affine(low: float, high: float, bits: int, symmetric: bool = False) -> QParams:
    """The grid that covers [low, high] and represents zero exactly. Raises EngineError for a range that is not finite."""
    if not (math.isfinite(low) and math.isfinite(high)):
        raise EngineError(f"an activation range of [{low}, {high}] cannot be quantized: the model or the data gives NaN or infinity")
    qmax = 2**bits - 1
    low, high = min(low, 0.0), max(high, 0.0)
    if symmetric:
        middle = (qmax + 1) // 2
        scale = max(high / (qmax - middle), -low / middle)
        return QParams(_usable(scale), middle, qmax)
    scale = _usable((high - low) / qmax)
    return QParams(scale, min(max(round(-low / scale), 0), qmax), qmax)


def _usable(scale: float) -> float:
    """The kernels hold scales in float32: a degenerate range gets a step of one."""
    held = torch.tensor(scale, dtype=torch.float32).item()
    return held if held > torch.finfo(torch.float32).tiny else 1.0


def quantize(x: Tensor, q: QParams) -> Tensor:
    """Float tensor to uint8 on the grid ``q``."""
    return round_to_(x.mul(1.0 / q.scale), 0, q.qmax, q.zero_point).to(torch.uint8)


def dequantize(x: Tensor, q: QParams) -> Tensor:
    """uint8 tensor on the grid ``q`` to float32."""
    return x.to(torch.float32).sub_(q.zero_point).mul_(q.scale)
