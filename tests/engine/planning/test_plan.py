"""What rules, presets and the proposal make of a decoder's matrices."""

from __future__ import annotations

from dataclasses import replace

import families
import pytest
import tiny_language

from engine.errors import UsageError
from engine.events.cancellation import StopToken
from engine.kernels.matrix.choose import labels
from engine.kernels.probe import probe
from engine.lowering.modules.layers import plan
from engine.lowering.modules.rounding import round_decoder
from engine.lowering.modules.runtime import running
from engine.models.anatomy import anatomy
from engine.planning.legality import legalize
from engine.planning.plan import Plan
from engine.recipe.capabilities import of_decoder
from engine.recipe.presets import BLOCKS, DYNAMIC, MIXTURES
from engine.recipe.presets import INT8 as ROWS
from engine.recipe.spec import FP32, ActivationSpec, LayerSpec, Rule, WeightSpec

INT8 = LayerSpec(ROWS, DYNAMIC)


def planned(family: str = "gpt2", preset: str = "default", *rules: Rule) -> Plan:
    model = families.build(family)
    return plan(model, anatomy(model), preset, rules, {}, lambda spec, kind, shape, plain: f"{kind} {shape}")


@pytest.mark.parametrize("family", sorted(families.FAMILIES))
def test_every_parameter_is_in_one_row(family: str) -> None:
    model = families.build(family)
    rows = planned(family).layers
    assert sum(row.params for row in rows) == sum(p.numel() for p in model.parameters())
    names = [name for name, _ in model.named_modules()]
    assert [row.path for row in rows] == sorted((row.path for row in rows), key=names.index)


def test_by_default_matrices_have_8_bits_and_the_rest_stays() -> None:
    rows = {row.path: row for row in planned().layers}
    assert rows["transformer.h.0.attn.c_attn"].actual == INT8 and rows["transformer.wte"].actual == LayerSpec(ROWS)
    norm = rows["transformer.h.0.ln_1"]
    assert norm.actual == FP32 and not norm.editable and norm.why == norm.obstacle == "it holds no matrix" and norm.kernel == "torch fp32"
    assert rows["transformer.h.1.mlp.c_fc"].kernel == "Conv1D (64, 16)"


def test_a_tied_head_has_the_weights_of_its_embedding() -> None:
    rows = {row.path: row for row in planned("gpt2", "w4").layers}
    head = rows["lm_head"]
    assert head.tied == "transformer.wte" and not head.editable and head.params == 0 and "shares" in head.why
    assert head.actual.weights == rows["transformer.wte"].actual.weights == ROWS
    kept = {row.path: row for row in planned("gpt2", "default", Rule("transformer.wte", FP32)).layers}
    assert kept["lm_head"].actual == FP32


def test_rules_come_before_the_preset_and_unused_ones_are_told() -> None:
    four = LayerSpec(WeightSpec(4, "per-group", 64, symmetric=False, method="awq"))
    made = planned("llama", "w8", Rule("*.mlp.*", four), Rule("kind:Conv2d", FP32, 7))
    rows = {row.path: row for row in made.layers}
    assert rows["model.layers.1.mlp.down_proj"].actual == four and rows["model.layers.1.self_attn.q_proj"].actual == LayerSpec(ROWS)
    assert len(made.warnings) == 1 and made.warnings[0].startswith("line 7: rule 'kind:Conv2d'")


def test_each_preset_asks_for_what_it_says() -> None:
    for preset, spec in BLOCKS.items():
        if preset in MIXTURES:
            continue
        rows = {row.path: row for row in planned("gpt2", preset).layers}
        assert rows["transformer.h.0.mlp.c_fc"].requested == spec
        assert rows["transformer.wpe"].actual == LayerSpec(ROWS)
    with pytest.raises(UsageError, match="preset tensorrt is for networks on images"):
        planned("gpt2", "tensorrt")


@pytest.mark.parametrize(("family", "path"), [("gpt2", ""), ("opt", "embed_positions"), ("gemma3", "embed_tokens")])
def test_a_plan_promises_what_the_run_computes_on(family: str, path: str) -> None:
    model = families.build(family)
    made = plan(model, anatomy(model), "w8", (), {}, labels(probe()))
    decoder, _ = tiny_language.finished(round_decoder(model, made.layers, [], 1, StopToken()))
    _, placed = running(decoder, probe())
    assert {row.path: row.kernel for row in made.layers if row.path in placed} == {path: it.label for path, it in placed.items()}
    stored = {row.path.rpartition(".")[2] for row in made.layers if row.kind == "Embedding" and row.kernel != "int8 rows"}
    assert stored == ({path} if path else set())


@pytest.mark.parametrize(
    ("spec", "kind", "in_block", "given", "says"),
    [
        (INT8, "Embedding", False, LayerSpec(ROWS), "no activations"),
        (LayerSpec(WeightSpec(4, method="gptq")), "Linear", False, LayerSpec(WeightSpec(4, method="mse")), "no text reaches"),
        (LayerSpec(replace(ROWS, granularity="per-tensor")), "Linear", True, LayerSpec(ROWS), "per channel at least"),
        (LayerSpec(ROWS, ActivationSpec(4, dynamic=True)), "Linear", True, INT8, "8 bits"),
        (LayerSpec(replace(ROWS, symmetric=False), ActivationSpec(8)), "Linear", True, LayerSpec(replace(ROWS, symmetric=False), DYNAMIC),
         "no static kernel"),
        (INT8, "Conv1D", True, INT8, None),
    ],
)  # fmt: skip
def test_what_cannot_be_had_is_the_nearest_with_a_sentence(
    spec: LayerSpec, kind: str, in_block: bool, given: LayerSpec, says: str | None
) -> None:
    got, why = legalize(spec, of_decoder(kind, in_block), 8)
    assert got == given and (why is None if says is None else says in str(why))
