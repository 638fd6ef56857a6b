"""One matrix from its weight and its inputs' statistics to integers."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from engine.algorithms.gram import Gram, output_error
from engine.algorithms.registry import Method
from engine.quant.grouped import GroupedWeight, GroupSpec
from engine.quant.numerics import sqnr_db


@dataclass(frozen=True)
class Quantized:
    """``shift`` (out,) is what the layer's bias has to take up, or None. ``sqnr_db`` as in ``MatrixQuantized``."""

    weight: GroupedWeight
    shift: Tensor | None
    sqnr_db: float
    note: str | None


@torch.no_grad()
def quantize_matrix(weight: Tensor, spec: GroupSpec, method: Method, inputs: Gram | None, has_bias: bool) -> Quantized:
    """``weight`` float32 (out, in), its scaling folded already. ``inputs`` may be None where the method needs none; other
    methods fall back on rounding to nearest without it, and say so.

    Raises EngineError for weights that are not finite.
    """
    if inputs is None or not inputs.count:
        grid = method.grid(weight, spec, None)
        from engine.quant.grouped import quantize

        rounded = quantize(weight, grid)
        note = "no calibration text reached it: rounded to nearest" if method.needs_inputs else None
        return Quantized(rounded, None, _weight_sqnr(weight, rounded.dequantize()), note)
    centred = method.centred and has_bias
    second = inputs.covariance if centred else inputs.second
    grid = method.grid(weight, spec, second if method.weighted else None)
    values, note = method.rounding(weight, grid, second)
    rounded = GroupedWeight(values, grid)
    change = rounded.dequantize().sub_(weight)
    noise, signal = float(output_error(change, second).sum()), float(output_error(weight, inputs.second).sum())
    return Quantized(rounded, -(change @ inputs.mean) if centred else None, sqnr_db(signal, max(noise, 0.0)), note)


def _weight_sqnr(weight: Tensor, rounded: Tensor) -> float:
    return sqnr_db(float(weight.square().sum()), float((rounded - weight).square().sum()))
