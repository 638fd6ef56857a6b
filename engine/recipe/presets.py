"""The presets: what each asks of a layer, by the layer's role. Torch-free. The preset ``default`` is the proposal
(``engine.planning.proposal``)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

from engine.errors import UsageError
from engine.recipe.capabilities import Role
from engine.recipe.spec import ActivationSpec, LayerSpec, WeightSpec

INT8 = WeightSpec(8, "per-channel")
DYNAMIC = ActivationSpec(8, dynamic=True)
_STATIC = ActivationSpec(8, observer="histogram-mse")
_FP8 = WeightSpec.of({"format": "fp8_e4m3"})
FP8_DYNAMIC = ActivationSpec.of({"format": "fp8_e4m3", "dynamic": True})
FP8_STATIC = ActivationSpec.of({"format": "fp8_e4m3"})
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
    # What TensorRT runs: int8 around zero on both sides.
    "tensorrt": LayerSpec(INT8, ActivationSpec(8, symmetric=True, observer="histogram-mse")),
}
# Of the matrices in a decoder's blocks; embeddings and the head have 8 bits in each of them.
BLOCKS: dict[str, LayerSpec] = {
    "w8a8": LayerSpec(replace(INT8, method="smoothquant"), DYNAMIC),
    "w8a8-static": LayerSpec(replace(INT8, method="smoothquant"), _STATIC),
    "w8": LayerSpec(INT8),
    "w4a8": LayerSpec(_FEW, DYNAMIC),
    "w4": LayerSpec(_FEW),
    "w3": LayerSpec(replace(_FEW, bits=3)),
    "w4a4": LayerSpec(_FEW, ActivationSpec(4, dynamic=True, group_size=64)),
    "fp8": LayerSpec(_FP8),
    "fp8-dynamic": LayerSpec(_FP8, FP8_DYNAMIC),
    "fp8-static": LayerSpec(_FP8, FP8_STATIC),
    "fp8-block": LayerSpec(replace(_FP8, granularity="per-block"), replace(FP8_DYNAMIC, group_size=128)),
    "mxfp4": LayerSpec(WeightSpec.of({"format": "mxfp4", "method": "gptq"})),
    "nvfp4": LayerSpec(WeightSpec.of({"format": "nvfp4", "method": "gptq"})),
}


def _blocks(name: str) -> LayerSpec:
    """Weights in one of GGUF's formats; two or three bits need GPTQ most, and none is hurt by it."""
    return LayerSpec(WeightSpec.of({"format": name, "method": "nearest" if name == "q8_0" else "imatrix+gptq"}))


# What most matrices of a block have under the names that llama.cpp gives its mixtures.
MIXTURES: dict[str, str] = {
    "q8_0": "q8_0", "q6_k": "q6_k", "q5_k_m": "q5_k", "q4_k_m": "q4_k", "q4_0": "q4_0", "q3_k_m": "q3_k", "q2_k": "q2_k",
}  # fmt: skip
BLOCKS |= {name: _blocks(base) for name, base in MIXTURES.items()}
# Kinds of matrices by the last parts of their paths, in the families of transformers.
_KINDS: Mapping[str, re.Pattern[str]] = {
    "value": re.compile(r"(^|\.)v_proj$"),
    "fused": re.compile(r"(^|\.)(c_attn|query_key_value|qkv_proj)$"),
    "down": re.compile(r"(^|\.)(down_proj|mlp\.c_proj|dense_4h_to_h|fc2)$"),
    "output": re.compile(r"(^|\.)(o_proj|attn\.c_proj|attention\.dense|self_attn\.(dense|out_proj))$"),
    "position": re.compile(r"(^|\.)(wpe|embed_positions)$"),
}


@dataclass(frozen=True)
class Place:
    """Where a matrix is in a model: its ``path``, the number of its block of so many (``depth``), and whether an embedding is the head's
    matrix too."""

    path: str
    block: int = 0
    depth: int = 1
    tied: bool = False

    @property
    def kind(self) -> str:
        """A key of ``_KINDS``, or nothing."""
        return next((kind for kind, pattern in _KINDS.items() if pattern.search(self.path)), "")

    @property
    def more(self) -> bool:
        """Whether llama.cpp's ``use_more_bits`` names the block: the first and last eighth, and every third between."""
        return self.block < self.depth // 8 or self.block >= 7 * self.depth // 8 or (self.block - self.depth // 8) % 3 == 2


def _mixed(preset: str, role: Role, at: Place) -> str:
    """The format of one matrix in a mixture, as ``llama-quant.cpp`` chooses it for dense models."""
    base, kind = MIXTURES[preset], at.kind
    if base == "q8_0" or kind == "position":
        return "q8_0"
    if role == "outside" or (role == "embedding" and at.tied):
        return "q6_k"
    if role == "embedding":
        return base
    if preset in ("q4_k_m", "q5_k_m"):
        raised = "q5_k" if preset == "q4_k_m" else "q6_k"
        return raised if kind == "fused" else "q6_k" if kind in ("value", "down") and at.more else base
    if preset == "q3_k_m" and kind:
        first = (kind == "value" and at.block < 2) or (kind == "down" and at.block < at.depth // 16)
        return "q5_k" if first else "q4_k"
    return "q3_k" if preset == "q2_k" and kind in ("value", "down", "output") else base


def _outside(name: str, spec: LayerSpec) -> LayerSpec:
    if name in MIXTURES:
        return LayerSpec(WeightSpec.of({"format": "q8_0" if name == "q8_0" else "q6_k", "method": "nearest" if name == "q8_0" else "mse"}))
    floats = spec.activations is not None and (spec.activations.format or spec.activations.group_size)
    return LayerSpec(INT8, DYNAMIC if spec.activations and not floats else None)


BY_ROLE: Mapping[Role, Mapping[str, LayerSpec]] = {
    "none": PRESETS,
    "convolution": PRESETS,
    "linear": PRESETS,
    "block": BLOCKS,
    "outside": {name: _outside(name, spec) for name, spec in BLOCKS.items()},
    "embedding": {name: _outside(name, replace(spec, activations=None)) for name, spec in BLOCKS.items()},
}


def asked(preset: str, role: Role, at: Place | None = None) -> LayerSpec:
    """What ``preset``, which is not ``default``, asks of a layer of that role; of a mixture, ``at`` its place. Raises UsageError for
    one that such layers do not have."""
    found = BY_ROLE[role].get(preset)
    if found is None:
        others = "language models" if preset in BLOCKS else "networks on images"
        raise UsageError(f"preset {preset} is for {others}: give default, {', '.join(BY_ROLE[role])}")
    if preset in MIXTURES and at is not None and found.weights is not None:
        return replace(found, weights=WeightSpec.of({"format": _mixed(preset, role, at), "method": found.weights.method}))
    return found
