"""What a machine can do of what a layer is asked to become. Torch-free."""

from __future__ import annotations

from dataclasses import replace

from engine.recipe.spec import METHODS, LayerSpec

NO_KERNEL = "no integer kernel for this kind of layer"
NOT_FOLDED = "is not folded: "


def possible(spec: LayerSpec, activation_bits: int) -> tuple[LayerSpec, str | None]:
    """The nearest that can be had of ``spec``, and a sentence where that is less. ``activation_bits`` is the widest that the
    machine multiplies without saturating."""
    notes = []
    if spec.weights and (why := METHODS[spec.weights.method].needs_blocks):
        notes.append(f"{spec.weights.method} {why}, as language models alone have them: rounded to the nearest")
        spec = replace(spec, weights=replace(spec.weights, method="nearest"))
    if spec.weights and not spec.weights.symmetric:
        notes.append("affine weights are for language models: symmetric")
        spec = replace(spec, weights=replace(spec.weights, symmetric=True))
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
