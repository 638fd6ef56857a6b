"""One matrix from its weight and its inputs' statistics to integers."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from engine.algorithms.gram import Gram, HeldBack, output_error, scaled_apart_, share_kept
from engine.algorithms.propagate import propagate
from engine.algorithms.registry import Method
from engine.numerics.qtensor import QTensor
from engine.numerics.scheme import WeightScheme
from engine.numerics.sqnr import sqnr_db
from engine.numerics.weights import WeightQParams, minmax, quantize


@dataclass(frozen=True)
class Quantized:
    """``shift`` (out,) is what the layer's bias has to take up, or None. ``sqnr_db`` as in ``MatrixQuantized``."""

    weight: QTensor
    shift: Tensor | None
    sqnr_db: float
    note: str | None


@torch.no_grad()
def quantize_matrix(
    weight: Tensor, spec: WeightScheme, method: Method, inputs: Gram | None, has_bias: bool, last: bool = False
) -> Quantized:
    """``weight`` float32 (out, in), its scaling folded already; it is not changed. ``inputs`` may be None where the method needs none;
    other methods fall back on rounding to nearest without it, and say so. Where ``inputs`` holds text back and rounding to nearest, on
    the method's grid or on the min-max one, has less error at the layer's output there, it is taken instead, and the note says so.

    ``last`` says that nobody needs the products of ``inputs`` afterwards: they are given up, so that beside a wide layer's factor there
    is one matrix of its moments in memory. Raises EngineError for weights that are not finite.
    """
    if inputs is None or not inputs.count:
        rounded = quantize(weight, method.grid(weight, spec, None))
        note = "no calibration text reached it: rounded to nearest" if method.needs_inputs else None
        return Quantized(rounded, None, _weight_sqnr(weight, rounded.dequantize()), note)
    centred = method.centred and has_bias
    moments = inputs.moments(centred)
    signal = float(output_error(weight, inputs.second if centred else moments).sum())
    target = weight
    if method.propagation and (drift := inputs.drift(centred)) is not None:
        target = propagate(weight, moments, drift, method.propagation)
        del drift
    if last:
        inputs.release()
    kept = share_kept(len(moments), inputs.seen)
    # In place and back: beside a wide layer's factor a second one would be the largest thing in memory.
    second = scaled_apart_(moments, kept)
    grid = method.grid(target, spec, second if method.weighted else None)
    rounded, note = method.rounding(target, grid, second)
    moments = scaled_apart_(second, 1 / kept)
    if method.judged and inputs.held_back is not None and (better := _nearest(weight, rounded, spec, inputs, inputs.held_back, centred)):
        rounded, said = better
        target, note = weight, "; ".join(filter(None, (note, said)))
    held = rounded.dequantize()
    noise = float(output_error(held - target, moments).sum())
    shift = inputs.gap(weight, held, whole=True) if centred else None
    return Quantized(rounded, shift, sqnr_db(signal, max(noise, 0.0)), note)


def _nearest(
    weight: Tensor, rounded: QTensor, spec: WeightScheme, inputs: Gram, judge: HeldBack, centred: bool
) -> tuple[QTensor, str] | None:
    """The better of two roundings to nearest and what is said of it, where it has less error on ``judge`` than ``rounded``."""

    def error_of(candidate: QTensor) -> tuple[float, float]:
        held = candidate.dequantize()
        return judge.errors(weight, held, inputs.gap(weight, held) if centred else None)

    signal, own = error_of(rounded)
    least, found = own, None
    for which, grid in (
        ("the same grid", WeightQParams.of(rounded)),
        ("the min-max grid", minmax(weight, spec)),
    ):
        candidate = quantize(weight, grid)
        error = error_of(candidate)[1]
        if error < least:
            least, found = error, (candidate, which)
    if found is None:
        return None
    better, worse = (sqnr_db(signal, error) for error in (least, own))
    return found[0], f"rounded to nearest on {found[1]}: {better:.1f} dB on calibration text held back, against {worse:.1f} dB"


def _weight_sqnr(weight: Tensor, rounded: Tensor) -> float:
    return sqnr_db(float(weight.square().sum()), float((rounded - weight).square().sum()))
