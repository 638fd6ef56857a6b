"""Fake quantization that learns: values are rounded in the forward pass, gradients pass straight through.

The step sizes are trained with the gradient of LSQ (Esser et al. 2020, arXiv:1902.08153, equations 3 and 5): inside the
range d/ds = round(v) - v, outside it is the bound itself, scaled by 1 / sqrt(N * Q) for N values and Q levels.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from engine.numerics.formats import round_to
from engine.numerics.qparams import QParams
from engine.numerics.qtensor import QTensor, per_channel


class _LearnedStep(torch.autograd.Function):
    """x and step broadcast against each other; ``low`` and ``high`` bound round(x / step)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, step: Tensor, low: float, high: float, factor: float) -> Tensor:
        v = x / step
        q = round_to(v, low, high)
        ctx.save_for_backward(v, q, step)
        ctx.bounds = (low, high, factor)
        return q * step

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        (grad,) = grads
        v, q, step = ctx.saved_tensors
        low, high, factor = ctx.bounds
        inside = (v >= low - 0.5) & (v <= high + 0.5)
        by_step = torch.where(inside, q - v, q).mul_(grad)
        return grad * inside, by_step.sum_to_size(step.shape) * factor, None, None, None


def learned_step(x: Tensor, step: Tensor, low: float, high: float, values_per_step: int) -> Tensor:
    """``round(x / step)`` clamped to [low, high], times ``step``; differentiable in both."""
    result: Tensor = _LearnedStep.apply(x, step, low, high, 1.0 / math.sqrt(values_per_step * max(high, 1)))
    return result


def learned_affine(x: Tensor, step: Tensor, zero_point: int, qmax: int, values_per_step: int) -> Tensor:
    """``x`` on the affine grid of ``step`` (one element), ``zero_point`` and 0..``qmax``; differentiable in x and step.

    torch's own kernel for it is private and does the same in half the time, so it is used where it exists.
    """
    if _NATIVE is None:
        return learned_step(x, step, -zero_point, qmax - zero_point, values_per_step)
    factor = 1.0 / math.sqrt(values_per_step * max(qmax - zero_point, 1))
    zero = torch.tensor([float(zero_point)], device=x.device)
    result: Tensor = _NATIVE(x, step.reshape(1), zero, 0, qmax, factor)
    return result


_NATIVE = getattr(torch, "_fake_quantize_learnable_per_tensor_affine", None)


class FakeQuantActivation(nn.Module):
    """A value on an affine grid whose step is learned and whose zero point stays where calibration put it."""

    def __init__(self, q: QParams) -> None:
        super().__init__()
        self.zero_point, self.qmax = q.zero_point, q.qmax
        self.step = nn.Parameter(torch.tensor(q.scale))

    def forward(self, x: Tensor) -> Tensor:
        return learned_affine(x, _positive(self.step), self.zero_point, self.qmax, x.numel() // len(x))

    def grid(self) -> QParams:
        return QParams(_positive(self.step).item(), self.zero_point, self.qmax)


class FakeQuantWeight(nn.Module):
    """Weights on the grid of a ``QTensor``: one learned step a channel; group multipliers stay as calibrated."""

    multiplier: Tensor | None

    def __init__(self, start: QTensor) -> None:
        super().__init__()
        self.format, self.group_size = start.format, start.group_size
        self.step = nn.Parameter(start.channel_scale.clone())
        self.register_buffer("multiplier", start.multiplier, persistent=False)

    def forward(self, weight: Tensor) -> Tensor:
        return learned_step(weight, self._steps(weight), self.format.low, self.format.high, weight[0].numel())

    def _steps(self, weight: Tensor) -> Tensor:
        step = _positive(self.step)
        if self.multiplier is None:
            return per_channel(step, weight.dim())
        spread = self.multiplier.repeat_interleave(self.group_size, 1)[:, : weight[0].numel()]
        return (step[:, None] * spread).reshape(weight.shape)

    @torch.no_grad()
    def quantized(self, weight: Tensor) -> QTensor:
        """The integers that the forward pass stands for."""
        codes = self.format.encode(self.format.round_(weight / self._steps(weight))).cpu()
        scale = _positive(self.step).detach().cpu().clone()[:, None]
        multiplier = None if self.multiplier is None else self.multiplier.cpu()
        return QTensor(codes, scale, None, self.format, self.group_size, multiplier)


def _positive(step: Tensor) -> Tensor:
    return step.abs().clamp_min(1e-9)
