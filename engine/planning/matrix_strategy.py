"""What the matrices of a decoder are asked to become: the presets, and the proposal. Torch-free."""

from __future__ import annotations

from dataclasses import replace

from engine.errors import UsageError
from engine.recipe.spec import FP32, ActivationSpec, LayerSpec, WeightSpec

ROWS = WeightSpec(8, "per-channel")
DYNAMIC = ActivationSpec(8, dynamic=True)
_STATIC = ActivationSpec(8, observer="histogram-mse")
_FEW = WeightSpec(4, "per-group", 64, symmetric=False, method="gptq+")

# What the layers of the blocks become; embeddings and the head have 8 bits in each of them.
PRESETS: dict[str, LayerSpec] = {
    "w8a8": LayerSpec(replace(ROWS, method="smoothquant"), DYNAMIC),
    "w8a8-static": LayerSpec(replace(ROWS, method="smoothquant"), _STATIC),
    "w8": LayerSpec(ROWS),
    "w4a8": LayerSpec(_FEW, DYNAMIC),
    "w4": LayerSpec(_FEW),
    "w3": LayerSpec(replace(_FEW, bits=3)),
}
# Methods that look at nothing but the matrix: all that an embedding can have.
ALONE = ("nearest", "mse", "hqq")


def asked(preset: str, kind: str, in_block: bool) -> LayerSpec:
    """What ``preset`` asks of a matrix of that kind. Raises UsageError for a preset that decoders do not have."""
    if preset == "default":
        return proposed(kind)[0]
    if preset not in PRESETS:
        raise UsageError(f"preset {preset} is for networks on images: give default, {', '.join(PRESETS)}")
    spec = PRESETS[preset]
    if kind == "Embedding":
        return LayerSpec(ROWS)
    if not in_block:
        return LayerSpec(ROWS, DYNAMIC if spec.activations else None)
    return spec


def proposed(kind: str) -> tuple[LayerSpec, str]:
    """What the preset ``default`` asks, and why."""
    if kind == "Embedding":
        return LayerSpec(ROWS), "a scale for each row: a quarter of the size, and a token reads one row"
    return LayerSpec(ROWS, DYNAMIC), "8 bits per channel cost next to nothing; activations get a scale for each token as it comes"


def possible(spec: LayerSpec, kind: str, in_block: bool) -> tuple[LayerSpec, str | None]:
    """The nearest that can be had of ``spec``, and a sentence where that is less."""
    if spec.weights is None:
        return FP32, None
    notes = []
    weights, activations = spec.weights, spec.activations
    if kind == "Embedding" and activations is not None:
        activations = None
        notes.append("an embedding has no activations to round")
    if not in_block and weights.method not in ALONE:
        weights = replace(weights, method="mse" if weights.bits < 8 else "nearest")
        notes.append(f"outside of the blocks no text reaches the method {spec.weights.method}")
    if weights.granularity == "per-tensor":
        weights = replace(weights, granularity="per-channel")
        notes.append("decoders have a scale per channel at least")
    if activations is not None and activations.bits != 8:
        activations = replace(activations, bits=8)
        notes.append("the kernels of decoders take activations of 8 bits")
    if activations is not None and not activations.dynamic and (weights.granularity == "per-group" or not weights.symmetric):
        activations = DYNAMIC
        notes.append("groups and affine grids have no static kernel: activations are rounded as they come")
    return LayerSpec(weights, activations), "; ".join(notes) or None
