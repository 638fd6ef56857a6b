"""The presets: what each asks of a layer, by the layer's role. Torch-free. The preset ``default`` is the proposal
(``engine.planning.proposal``)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from engine.errors import UsageError
from engine.recipe.capabilities import Role
from engine.recipe.spec import ActivationSpec, LayerSpec, WeightSpec

INT8 = WeightSpec(8, "per-channel")
DYNAMIC = ActivationSpec(8, dynamic=True)
_STATIC = ActivationSpec(8, observer="histogram-mse")
_FEW = WeightSpec(4, "per-group", 64, symmetric=False, method="gptq+")

# Of a network whose values stay integers from layer to layer.
PRESETS: dict[str, LayerSpec] = {
    "w8a8": LayerSpec(INT8, ActivationSpec(8)),
    "w8a8-static": LayerSpec(INT8, ActivationSpec(8)),
    "w4a8": LayerSpec(WeightSpec(4, "per-channel", method="mse"), ActivationSpec(8)),
    "w4a4": LayerSpec(WeightSpec(4, "per-channel", method="mse"), ActivationSpec(4, observer="histogram-mse")),
    "w8": LayerSpec(INT8),
    "w4": LayerSpec(WeightSpec(4, "per-channel", method="mse")),
    "w3": LayerSpec(WeightSpec(3, "per-channel", method="mse")),
}
# Of the matrices in a decoder's blocks; embeddings and the head have 8 bits in each of them.
BLOCKS: dict[str, LayerSpec] = {
    "w8a8": LayerSpec(replace(INT8, method="smoothquant"), DYNAMIC),
    "w8a8-static": LayerSpec(replace(INT8, method="smoothquant"), _STATIC),
    "w8": LayerSpec(INT8),
    "w4a8": LayerSpec(_FEW, DYNAMIC),
    "w4": LayerSpec(_FEW),
    "w3": LayerSpec(replace(_FEW, bits=3)),
    "fp8": LayerSpec(WeightSpec.of({"format": "fp8_e4m3"})),
    "mxfp4": LayerSpec(WeightSpec.of({"format": "mxfp4", "method": "gptq"})),
    "nvfp4": LayerSpec(WeightSpec.of({"format": "nvfp4", "method": "gptq"})),
}
BY_ROLE: Mapping[Role, Mapping[str, LayerSpec]] = {
    "none": PRESETS,
    "convolution": PRESETS,
    "linear": PRESETS,
    "block": BLOCKS,
    "outside": {name: LayerSpec(INT8, DYNAMIC if spec.activations else None) for name, spec in BLOCKS.items()},
    "embedding": {name: LayerSpec(INT8) for name in BLOCKS},
}


def asked(preset: str, role: Role) -> LayerSpec:
    """What ``preset``, which is not ``default``, asks of a layer of that role. Raises UsageError for one that such layers do not
    have."""
    found = BY_ROLE[role].get(preset)
    if found is None:
        others = "language models" if preset in BLOCKS else "networks on images"
        raise UsageError(f"preset {preset} is for {others}: give default, {', '.join(BY_ROLE[role])}")
    return found
