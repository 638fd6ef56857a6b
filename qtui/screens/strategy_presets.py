"""The presets that a strategy can be planned from, in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from engine.recipe.spec import Rule
from qtui import text
from qtui.draft import Draft

_IMAGE_TEXTS: Mapping[str, str] = {
    "default": "as proposed: 8 bits, large linear layers 4",
    "w8a8": "8-bit weights and activations: the safest",
    "tensorrt": "int8 around zero on both sides, for TensorRT",
    "w4a8": "4-bit weights, 8-bit activations",
    "w4a4": "4 bits for both: usually needs training",
    "w8": "8-bit weights alone, computed in fp32",
    "w4": "4-bit weights alone, computed in fp32",
    "w3": "3-bit weights alone: usually needs training",
}


_DECODER_TEXTS: Mapping[str, str] = {
    "default": "8 bits, activations rounded as they come",
    "w8a8": "the same after SmoothQuant, for outliers",
    "w8a8-static": "SmoothQuant, activations on fixed grids",
    "w8": "8-bit weights alone, computed in floats",
    "w4a8": "4-bit weights, activations as in default",
    "w4a4": "4-bit weights and activations, in groups",
    "w4": "4-bit weights alone, computed in floats",
    "w3": "3-bit weights alone: may need training",
    "fp8": "FP8 weights alone, computed in floats",
    "fp8-dynamic": "FP8, activations too as they come",
    "fp8-static": "FP8, activations too on fixed scales",
    "fp8-block": "FP8 in blocks of 128, activations too",
    "mxfp4": "MXFP4 weights alone, computed in floats",
    "nvfp4": "NVFP4 weights alone, computed in floats",
    "q8_0": "GGUF, 8 bits in blocks of 32",
    "q6_k": "GGUF, 6 bits in super-blocks of 256",
    "q5_k_m": "GGUF, 5 bits, 6 where it matters",
    "q4_k_m": "GGUF, 4 bits, 5 or 6 where it matters",
    "q4_0": "GGUF, 4 bits in blocks of 32",
    "q3_k_m": "GGUF, 3 bits, 4 or 5 where it matters",
    "q2_k": "GGUF, 2 bits, 3 where it matters",
}


def preset_texts(draft: Draft) -> Mapping[str, str]:
    """What each preset is, by name, of those that the model's layers can have."""
    return _DECODER_TEXTS if any(row.capabilities.between_floats for row in draft.plan.layers) else _IMAGE_TEXTS


def presets(draft: Draft, own: Sequence[Rule]) -> list[tuple[str, str]]:
    """The presets to choose from, each with the size that it would give."""
    texts = preset_texts(draft)
    longest = max(map(len, texts)) + 1
    found = []
    for name, about in texts.items():
        size = text.size(draft.planned_from(name, own).predicted_bytes)
        found.append((name, f"{name:<{longest}}{size:>9}  {about}"))
    return found
