"""Quantization error propagation (Arai & Ichikawa 2025, arXiv:2504.09629): a layer's weights are first moved so that, on the
inputs that the quantized layers before it give, it puts out what it did on the original ones."""

from __future__ import annotations

import torch
from torch import Tensor

from engine.algorithms.gram import strips
from engine.numerics.cholesky import factor_in_place


def propagate(weight: Tensor, second: Tensor, drift: Tensor, strength: float, damping: float = 1.0) -> Tensor:
    """``W + strength * W E[(x0 - x) xᵀ] (E[x xᵀ] + damping)^-1`` (out, in), x0 being the original inputs and x those that are
    given now: ``second`` = E[x xᵀ] and ``drift`` = E[(x0 - x) xᵀ], (in, in) each.

    ``strength`` below 1 goes part of the way and ``damping``, a share of each input's own second moment, keeps inputs apart that
    little text has not told apart: both against overfitting.
    """
    wanted = torch.zeros(weight.shape, dtype=torch.float64, device=weight.device)
    for part in strips(len(drift)):
        wanted += weight[:, part].to(torch.float64) @ drift[part].to(torch.float64)
    return weight + strength * _solved(second, damping, wanted).to(torch.float32)


def _solved(second: Tensor, damping: float, wanted: Tensor) -> Tensor:
    """X (out, in) of ``X (second + damping) = wanted``, float64."""
    lower = factor_in_place(_damped(second, damping))
    found: Tensor
    if lower is None:
        found = torch.linalg.solve(_damped(second, damping), wanted.mT)
    else:
        found = torch.linalg.solve_triangular(lower.mT, torch.linalg.solve_triangular(lower, wanted.mT, upper=False), upper=True)
    return found.mT


def _damped(second: Tensor, damping: float) -> Tensor:
    found = second.to(torch.float64, copy=True)
    diagonal = found.diagonal()
    diagonal.add_(damping * diagonal + diagonal.mean().clamp_min(1e-30) * 1e-6)
    return found
