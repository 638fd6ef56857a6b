"""SmoothQuant (Xiao et al. 2022, arXiv:2211.10438): outliers move from a layer's input into its weights, so that both fit
eight bits."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from engine.algorithms.gram import Gram
from engine.numerics.scheme import WeightScheme


def smoothquant(weights: Sequence[Tensor], specs: Sequence[WeightScheme], inputs: Gram, alpha: float = 0.5) -> Tensor:
    """The scale (in,) to multiply the columns of ``weights`` (each (out, in)) with and to divide their common input by:
    ``s = max|x|^alpha / max|w|^(1 - alpha)`` (equation 4). ``specs`` is not looked at. Inputs that are always zero, and
    columns of zeros, keep a scale of one."""
    largest = torch.stack([weight.abs().amax(0) for weight in weights]).amax(0)
    scale = inputs.peak.clamp_min(1e-5) ** alpha / largest.clamp_min(1e-5) ** (1 - alpha)
    return torch.where((inputs.peak > 0) & (largest > 0), scale, torch.ones_like(scale)).clamp_min(1e-5)
