"""What a machine can do of what a layer is asked to become. Torch-free."""

from __future__ import annotations

from dataclasses import replace

from engine.recipe.spec import LayerSpec, WeightSpec

NO_KERNEL = "no integer kernel for this kind of layer"
NOT_FOLDED = "is not folded: "
NOTICEABLE = 1.15
"""Two times whose ratio is less are as good as equal: repeated measurements differ by as much."""


def is_slower(first: float, second: float) -> bool:
    """Whether ``first`` takes longer than ``second``, beyond what repeated measurements differ by."""
    return first > NOTICEABLE * second


def pace(int8_ms: float | None, fp32_ms: float | None) -> str:
    """How a layer's integer kernel compares with fp32: ``3.2× slower``, ``2.0× faster``, ``as fast``; empty where not measured."""
    if not int8_ms or not fp32_ms:
        return ""
    if is_slower(int8_ms, fp32_ms):
        return f"{int8_ms / fp32_ms:.1f}× slower"
    return f"{fp32_ms / int8_ms:.1f}× faster" if is_slower(fp32_ms, int8_ms) else "as fast"


def possible(spec: LayerSpec, activation_bits: int) -> tuple[LayerSpec, str | None]:
    """The nearest that can be had of ``spec``, and a sentence where that is less. ``activation_bits`` is the widest that the
    machine multiplies without saturating."""
    notes = []
    of_decoders = WeightSpec().method, WeightSpec().symmetric
    if spec.weights and (spec.weights.method, spec.weights.symmetric) != of_decoders:
        spec = replace(spec, weights=replace(spec.weights, method=of_decoders[0], symmetric=of_decoders[1]))
        notes.append("methods and affine weights are for language models: symmetric, rounded to the nearest")
    if spec.activations and spec.activations.dynamic:
        spec = replace(spec, activations=replace(spec.activations, dynamic=False))
        notes.append("a scale for each token is for language models: one for the tensor")
    if spec.weights and spec.weights.granularity == "per-group" and spec.weights.bits > 6:
        spec = replace(spec, weights=replace(spec.weights, granularity="per-channel"))
        notes.append("groups need 6 bits or fewer, so one scale per channel")
    if spec.activations and spec.activations.bits > activation_bits:
        spec = replace(spec, activations=replace(spec.activations, bits=activation_bits))
        notes.append("7-bit activations: without VNNI the sums of 8-bit products saturate")
    return spec, "; ".join(notes) or None
