"""The planner on layers that no lowering gave: it asks what can be had of a layer, and nothing else."""

from __future__ import annotations

from dataclasses import replace

import pytest

from engine.errors import UsageError
from engine.events.event import Planned
from engine.planning.layer import Layer
from engine.planning.legality import legalize
from engine.planning.plan import Plan
from engine.planning.planner import plan
from engine.planning.size import packed_bytes, predicted_bytes, stored_bytes
from engine.recipe.capabilities import BLOCK, CONVOLUTION, EMBEDDING, LINEAR, OUTSIDE, Capabilities
from engine.recipe.presets import BY_ROLE
from engine.recipe.spec import FP32, ActivationSpec, LayerSpec, Rule, WeightSpec
from qtui.draft import Draft
from qtui.edits import EDITS

CONV = Layer("conv", "Conv2d", "conv", 224, (8, 3, 3, 3), CONVOLUTION)
NORM = Layer("bn", "BatchNorm2d", "bn", 16, (8,), folds_into="conv")
HEAD = Layer("fc", "Linear", "fc", 650, (10, 64), LINEAR)
NETWORK = (CONV, NORM, HEAD)
ROWS = Layer("wte", "Embedding", "wte", 3072, (96, 32), EMBEDDING)
MATRIX = Layer("h.0.fc", "Linear", "h.0.fc", 4096, (128, 32), BLOCK)
NO_MATRIX = Layer("ln", "LayerNorm", "ln", 64, (), obstacle="it holds no matrix", ruled=False)
TIED = Layer("head", "Linear", "head", 0, (96, 32), OUTSIDE, tied="wte")
DECODER = (ROWS, MATRIX, NO_MATRIX, TIED)


def becomes(made: Plan) -> dict[str, str]:
    return {row.path: str(row.actual) for row in made.layers}


def test_the_first_rule_that_matches_wins_and_others_are_told() -> None:
    rules = (Rule("fc", FP32), Rule("*", LayerSpec(WeightSpec(6))), Rule("kind:Linear", FP32, 3), Rule("fc", FP32))
    made = plan(NETWORK, "w8a8", rules)
    assert becomes(made) == {"conv": "w6 per-channel, fp32 activations", "bn": "fp32", "fc": "fp32"}
    assert made.warnings == (
        "line 3: rule 'kind:Linear' matches no layer", "rule 'fc' matches no layer that an earlier rule has not taken",
    )  # fmt: skip


def test_rules_are_not_for_what_they_cannot_change() -> None:
    made = plan(DECODER, "w8", (Rule("ln", FP32),))
    assert made.warnings == ("rule 'ln' matches no layer that it could change",)
    assert [(row.rule, row.why) for row in made.layers if row.path == "ln"] == [("kind", "it holds no matrix")]


def test_a_normalization_follows_the_layer_that_takes_it_in() -> None:
    assert {row.path: row.obstacle for row in plan(NETWORK, "w8a8").layers}["bn"] == "folded into conv at conversion"
    assert {row.path: row.obstacle for row in plan(NETWORK, "w8").layers}["bn"] == "stays as it is: conv computes in fp32"


def test_a_tied_layer_has_the_weights_of_the_first() -> None:
    made = plan(DECODER, "default", (Rule("wte", LayerSpec(WeightSpec(4))), Rule("head", LayerSpec(WeightSpec(3), ActivationSpec(8)))))
    rows = {row.path: row for row in made.layers}
    assert rows["head"].actual == LayerSpec(WeightSpec(4), ActivationSpec(8)) and not rows["head"].editable
    assert becomes(plan(DECODER, "default", (Rule("wte", FP32),)))["head"] == "fp32"


def test_each_role_has_presets_of_its_own() -> None:
    for role, presets in BY_ROLE.items():
        assert {"w8a8", "w8a8-static", "w8", "w4a8", "w4", "w3"} <= presets.keys(), role
    with pytest.raises(UsageError, match="preset tensorrt is for networks on images: give default, w8a8, w8a8-static, w8, w4a8, w4, w3"):
        plan(DECODER, "tensorrt")
    assert becomes(plan(NETWORK, "w4a4", activation_bits=7))["conv"] == "w4 per-channel, a4 per-tensor"


@pytest.mark.parametrize("capabilities", [CONVOLUTION, LINEAR, BLOCK, OUTSIDE, EMBEDDING], ids=lambda found: found.role)
@pytest.mark.parametrize("spec", [spec for presets in BY_ROLE.values() for spec in presets.values()], ids=str)
def test_what_can_be_had_can_be_had_again(capabilities: Capabilities, spec: LayerSpec) -> None:
    for bits in (7, 8):
        once, _ = legalize(spec, capabilities, bits)
        assert legalize(once, capabilities, bits) == (once, None)
        assert once.weights is not None and once.weights.method in capabilities.methods


def test_a_method_that_a_layer_is_given_is_planned_and_on_the_key_and_nowhere_else() -> None:
    more = replace(CONVOLUTION, methods=(*CONVOLUTION.methods, "awq"))
    asked = LayerSpec(WeightSpec(4, method="awq"), ActivationSpec(8))
    layers = (replace(CONV, capabilities=more), NORM, HEAD)
    made = plan(layers, "w8a8", (Rule("*", asked),))
    assert [row.actual.weights.method for row in made.layers if row.actual.weights] == ["awq", "nearest"]
    assert "as language models alone have them: rounded to the nearest" in made.layers[2].why and made.layers[0].why.endswith("asks for it")
    draft, seen = Draft.of(Planned(plan(layers, "w8a8").layers, "w8a8", 8, 10_000)), []
    for _ in more.methods:
        draft = draft.edit("rounding", ["conv"]).draft
        seen.append(getattr(draft.specs["conv"].weights, "method", None))
    assert seen == [*more.methods[1:], "nearest"]
    refused = EDITS["rounding"].apply(made.layers[2], asked, "awq", None)  # type: ignore[arg-type]
    assert refused == "awq folds scales into the layer before: fc is in no decoder's block"


def test_groups_are_offered_as_wide_as_they_can_be_had() -> None:
    draft = Draft.of(Planned(plan((replace(MATRIX, weight_shape=(128, 64)), HEAD), "w8").layers, "w8", 8, 10_000))
    eight = draft.edit("granularity", ["h.0.fc"]).draft
    assert str(eight.actual("h.0.fc")[0]) == "w8 per-group 32, fp32 activations"
    assert "6 bits or fewer" in draft.edit("granularity", ["fc"]).note


def test_the_size_of_a_role_is_that_of_the_form_it_is_stored_in() -> None:
    four = WeightSpec(4, "per-group", 16, symmetric=False)
    assert packed_bytes((96, 32), four) == 96 * (16 + 4 + 1) and stored_bytes((10, 64), WeightSpec(4)) == 320 + 40
    rows = plan((MATRIX,), "default", (Rule("*", LayerSpec(four)),)).layers
    kept = predicted_bytes(10**6, rows, {"h.0.fc": FP32})
    assert predicted_bytes(10**6, rows, {}) - kept == packed_bytes((128, 32), four) + 200 - 4 * 128 * 32


@pytest.mark.parametrize(
    ("weights", "activations", "had", "said"),
    [
        ({"format": "fp8_e4m3"}, {"format": "fp8_e4m3", "dynamic": True}, "fp8_e4m3 per-token dynamic", None),
        ({"format": "nvfp4"}, {"format": "fp8_e4m3", "dynamic": True}, "fp32 activations", "nothing multiplies nvfp4 with activations"),
        ({"bits": 8}, {"format": "fp8_e4m3", "dynamic": True}, "a8 per-token dynamic", "go with weights of floats: integers of 8 bits"),
        ({"bits": 4}, {"bits": 4, "dynamic": True, "group_size": 64}, "a4 per-token 64 dynamic", None),
        ({"bits": 4}, {"bits": 4, "dynamic": True}, "a8 per-token dynamic", "activations of 8 bits"),
    ],
)
def test_activations_become_the_nearest_that_goes_with_the_weights(
    weights: dict[str, object], activations: dict[str, object], had: str, said: str | None
) -> None:
    spec, why = legalize(LayerSpec(WeightSpec.of(weights), ActivationSpec.of(activations)), BLOCK, 8)
    assert str(spec).endswith(f", {had}")
    assert (said is None and why is None) or (said or "") in (why or "")


def test_networks_have_neither_floats_nor_blocks() -> None:
    block = WeightSpec(8, "per-block", format="fp8_e4m3")
    spec, why = legalize(LayerSpec(block, ActivationSpec.of({"format": "fp8_e4m3", "dynamic": True})), CONVOLUTION, 8)
    assert str(spec) == "w8 per-channel, a8 per-tensor" and "for matrices of language models" in (why or "")
    assert str(legalize(LayerSpec(block), BLOCK, 8)[0]) == "fp8_e4m3 per-block, fp32 activations"
    assert "per-channel" in str(legalize(LayerSpec(WeightSpec(8, "per-block")), BLOCK, 8)[0])
