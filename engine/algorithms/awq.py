"""AWQ (Lin et al. 2023, arXiv:2306.00978): inputs that are large get more of the grid, by a scale for each input that the
layer before takes back. The loss is taken from the inputs' second moments, tr(D H Dᵀ), not from stored activations."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from engine.algorithms.gram import Gram, output_error
from engine.numerics.scheme import WeightScheme
from engine.numerics.weights import minmax, quantize

STEPS = 20


def awq(weights: Sequence[Tensor], specs: Sequence[WeightScheme], inputs: Gram) -> Tensor:
    """The scale (in,) to multiply the columns of ``weights`` (each (out, in)) with and to divide their common input by.

    ``s = m^a`` with m the mean \\|x\\| and a from 0 to 0.95 in steps of 0.05, the one of least output error when each
    scaled weight is rounded to nearest on its min-max grid; a = 0 is no scaling. Normalized to ``sqrt(max * min) = 1``.
    """
    second = inputs.second
    magnitude = inputs.mean_magnitude
    magnitude = magnitude.clamp_min(float(magnitude.mean().clamp_min(1e-12)) * 1e-3)
    best, least = torch.ones_like(magnitude), float("inf")
    for step in range(STEPS):
        scale = magnitude ** (step / STEPS)
        scale = scale / (scale.max() * scale.min()).sqrt()
        loss = 0.0
        for weight, spec in zip(weights, specs, strict=True):
            scaled = weight * scale
            change = quantize(scaled, minmax(scaled, spec)).dequantize().div_(scale).sub_(weight)
            loss += float(output_error(change, second).sum())
        if loss < least:
            best, least = scale, loss
    return best
