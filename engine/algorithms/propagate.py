"""Quantization error propagation (Arai & Ichikawa 2025, arXiv:2504.09629): a layer's weights are first moved so that, on the
inputs that the quantized layers before it give, it puts out what it did on the original ones."""

from __future__ import annotations

import torch
from torch import Tensor


def propagate(weight: Tensor, second: Tensor, drift: Tensor, strength: float, damping: float = 1.0) -> Tensor:
    """``W + strength * W E[(x0 - x) xᵀ] (E[x xᵀ] + damping)^-1`` (out, in), x0 being the original inputs and x those that are
    given now: ``second`` = E[x xᵀ] and ``drift`` = E[(x0 - x) xᵀ], (in, in) each.

    ``strength`` below 1 goes part of the way and ``damping``, a share of each input's own second moment, keeps inputs apart that
    little text has not told apart: both against overfitting.
    """
    diagonal = second.diagonal().to(torch.float64)
    floor = diagonal.mean().clamp_min(1e-30) * 1e-6
    damped = second.to(torch.float64) + torch.diag(damping * diagonal + floor)
    moved: Tensor = torch.linalg.solve(damped, (weight.to(torch.float64) @ drift.to(torch.float64)).T).T
    return weight + strength * moved.to(torch.float32)
