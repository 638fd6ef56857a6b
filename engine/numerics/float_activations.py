"""Activations in floats of few bits, as kernels of GPUs round them: with a scale for each token, for each group of its channels, or one
for the tensor; and in integers with a scale for each group of a token."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from engine.numerics.formats import FORMATS, NumberFormat, integer
from engine.numerics.scheme import WeightScheme, in_groups
from engine.numerics.weights import power_of_two
from engine.recipe.spec import ActivationSpec

# The least step: of a token of zeros every step is right, and this one divides.
TINY = 1e-30


def simulated(spec: ActivationSpec) -> bool:
    """Whether ``round_floats`` rounds so, where no kernel of this machine does."""
    return bool(spec.format or spec.group_size)


def round_floats(x: Tensor, spec: ActivationSpec, step: float | None = None) -> Tensor:
    """``x`` (..., in) in float32 as ``spec``, which has a format or groups, rounds it: the same shape, dequantized.

    Dynamic steps are the largest magnitude of a token, or of each of its groups, over the format's largest value, in float32; those of
    microscaling formats are powers of two. ``step`` is that of a spec that is not dynamic. What lies beyond the largest value is
    clipped to it. Raises ValueError for a static spec without a step.
    """
    form = FORMATS[spec.format] if spec.format else integer(spec.bits)
    rows = x.reshape(-1, x.shape[-1]).to(torch.float32)
    if not spec.dynamic:
        if step is None:
            raise ValueError("static activations need a step")
        return round_values(rows / step, form).mul_(step).reshape(x.shape)
    scheme = WeightScheme(form, spec.group_size)
    grouped = in_groups(rows, scheme)
    steps = (grouped.abs().amax(2, keepdim=True) / form.high).clamp_min_(TINY)
    if form.scale == torch.float8_e8m0fnu:
        steps = power_of_two(steps, form.high).to(torch.float32)
    found = round_values(grouped / steps, form).mul_(steps)
    return found.reshape(len(rows), -1)[:, : x.shape[-1]].reshape(x.shape)


def round_values(values: Tensor, form: NumberFormat) -> Tensor:
    """``values``, float32, to the nearest that ``form`` has, in new memory; halves to even codes, beyond the ends to these."""
    if form.levels == FORMATS["fp8_e4m3"].levels:
        return values.clamp(form.low, form.high).to(torch.float8_e4m3fn).to(torch.float32)
    return form.round(values) if form.levels else values.round().clamp_(-form.high, form.high)


def static_step(low: float, high: float, name: str) -> float:
    """The step whose format reaches ``low`` and ``high``; 1 of a range of nothing."""
    largest = max(-low, high, 0.0)
    return largest / FORMATS[name].high if largest > 0 and math.isfinite(largest) else 1.0
