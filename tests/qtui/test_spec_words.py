"""A spec is spelled in one way, whether it comes from a plan or from a report."""

from __future__ import annotations

import pytest

from engine.recipe.spec import FP32, ActivationSpec, LayerSpec, WeightSpec
from qtui.spec_words import respelled, spelled


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        (LayerSpec(WeightSpec(8, "per-channel"), ActivationSpec(8)), "w8 · a8"),
        (LayerSpec(WeightSpec(4, "per-group", 32), ActivationSpec(7)), "w4 g32 · a7"),
        (LayerSpec(WeightSpec(4, "per-group", 32), ActivationSpec(7, symmetric=True)), "w4 g32 · a7 sym"),
        (LayerSpec(WeightSpec(8, "per-tensor"), None), "w8 tensor · fp32"),
        (FP32, "fp32"),
    ],
)
def test_a_plan_and_a_report_spell_alike(spec: LayerSpec, said: str) -> None:
    assert spelled(spec) == said == respelled(str(spec))
