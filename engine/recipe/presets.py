"""The presets, which treat all layers alike. Torch-free. The preset ``default`` is the proposal (``quant.proposal``)."""

from __future__ import annotations

from engine.recipe.spec import ActivationSpec, LayerSpec, WeightSpec

INT8 = WeightSpec(8, "per-channel")

PRESETS: dict[str, LayerSpec] = {
    "w8a8": LayerSpec(INT8, ActivationSpec(8)),
    "w8a8-static": LayerSpec(INT8, ActivationSpec(8)),
    "w4a8": LayerSpec(WeightSpec(4, "per-channel", method="mse"), ActivationSpec(8)),
    "w4a4": LayerSpec(WeightSpec(4, "per-channel", method="mse"), ActivationSpec(4, observer="histogram-mse")),
    "w8": LayerSpec(INT8),
    "w4": LayerSpec(WeightSpec(4, "per-channel", method="mse")),
    "w3": LayerSpec(WeightSpec(3, "per-channel", method="mse")),
}
