"""One matrix from its weight and its inputs' statistics to integers."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from engine.algorithms.gram import Gram, output_error, shrunk
from engine.algorithms.propagate import propagate
from engine.algorithms.registry import Method
from engine.numerics.qtensor import QTensor
from engine.numerics.scheme import WeightScheme
from engine.numerics.sqnr import sqnr_db
from engine.numerics.weights import quantize


@dataclass(frozen=True)
class Quantized:
    """``shift`` (out,) is what the layer's bias has to take up, or None. ``sqnr_db`` as in ``MatrixQuantized``."""

    weight: QTensor
    shift: Tensor | None
    sqnr_db: float
    note: str | None


@torch.no_grad()
def quantize_matrix(weight: Tensor, spec: WeightScheme, method: Method, inputs: Gram | None, has_bias: bool) -> Quantized:
    """``weight`` float32 (out, in), its scaling folded already. ``inputs`` may be None where the method needs none; other
    methods fall back on rounding to nearest without it, and say so.

    Raises EngineError for weights that are not finite.
    """
    if inputs is None or not inputs.count:
        rounded = quantize(weight, method.grid(weight, spec, None))
        note = "no calibration text reached it: rounded to nearest" if method.needs_inputs else None
        return Quantized(rounded, None, _weight_sqnr(weight, rounded.dequantize()), note)
    centred = method.centred and has_bias
    moments = inputs.moments(centred)
    second = shrunk(moments, inputs.seen)
    drift = inputs.drift(centred) if method.propagation else None
    target = weight if drift is None else propagate(weight, moments, drift, method.propagation)
    grid = method.grid(target, spec, second if method.weighted else None)
    rounded, note = method.rounding(target, grid, second)
    held = rounded.dequantize()
    noise, signal = float(output_error(held - target, moments).sum()), float(output_error(weight, inputs.second).sum())
    shift = weight @ (inputs.mean + inputs.moved / inputs.seen) - held @ inputs.mean if centred else None
    return Quantized(rounded, shift, sqnr_db(signal, max(noise, 0.0)), note)


def _weight_sqnr(weight: Tensor, rounded: Tensor) -> float:
    return sqnr_db(float(weight.square().sum()), float((rounded - weight).square().sum()))
