"""A spec is spelled in one way, whether it comes from a plan or from a report."""

from __future__ import annotations

import pytest

from engine.recipe.presets import BLOCKS
from engine.recipe.spec import FP32, ActivationSpec, LayerSpec, WeightSpec
from qtui.spec_words import respelled, spelled


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        (LayerSpec(WeightSpec(8, "per-channel"), ActivationSpec(8)), "w8 · a8"),
        (LayerSpec(WeightSpec(4, "per-group", 32), ActivationSpec(7)), "w4 g32 · a7"),
        (LayerSpec(WeightSpec(4, "per-group", 32), ActivationSpec(7, symmetric=True)), "w4 g32 · a7 sym"),
        (LayerSpec(WeightSpec(8, "per-tensor"), None), "w8 tensor · fp32"),
        (BLOCKS["fp8-dynamic"], "fp8_e4m3 · fp8_e4m3 dynamic"),
        (BLOCKS["fp8-static"], "fp8_e4m3 · fp8_e4m3"),
        (BLOCKS["fp8-block"], "fp8_e4m3 blocks · fp8_e4m3 g128 dynamic"),
        (BLOCKS["w4a4"], "w4 g64 affine gptq+ · a4 g64 dynamic"),
        (LayerSpec(WeightSpec.of({"format": "mxfp8"}), ActivationSpec.of({"format": "mxfp8"})), "mxfp8 · mxfp8 dynamic"),
        (FP32, "fp32"),
    ],
)
def test_a_plan_and_a_report_spell_alike(spec: LayerSpec, said: str) -> None:
    assert spelled(spec) == said == respelled(str(spec))
