"""Experts that transformers keeps in one tensor are layers of their own: each is rounded, stored and read back as a matrix."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import driving
import pytest
import tiny_language
import torch

import engine
from engine import Recipe
from engine.events.cancellation import StopToken
from engine.events.event import Notice
from engine.lowering.modules.layers import plan
from engine.lowering.modules.rounding import round_decoder
from engine.models.anatomy import anatomy
from engine.models.experts import SeparateExperts, separate_experts
from engine.recipe.spec import ActivationSpec, LayerSpec, Rule, WeightSpec

BASE = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 24, "head_dim": 8,
    "max_position_embeddings": 64, "vocab_size": tiny_language.ROWS, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0,
}  # fmt: skip
FEW = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
DEEP = {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "first_k_dense_replace": 1} | dict.fromkeys(
    ("n_group", "topk_group"), 1
)
LATENT = {"kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8, "num_key_value_heads": 4}
# Family: what its configuration adds, and how many of its two blocks have experts.
FAMILIES: dict[str, tuple[dict[str, Any], int]] = {
    "Qwen3Moe": (FEW, 2),
    "Qwen2Moe": ({**FEW, "shared_expert_intermediate_size": 24}, 2),
    "Mixtral": ({"num_local_experts": 4}, 2),
    "Olmoe": (FEW, 2),
    "GptOss": ({"num_local_experts": 4, "num_experts_per_tok": 2}, 2),
    "GraniteMoe": ({"num_local_experts": 4, "num_experts_per_tok": 2}, 2),
    "Phimoe": ({"num_local_experts": 4}, 2),
    "Glm4Moe": (DEEP, 1),
    "DeepseekV3": ({**DEEP, **LATENT, "q_lora_rank": 16}, 1),
}  # fmt: skip
WINDOWS = [torch.randint(tiny_language.ROWS, (24,), generator=torch.Generator().manual_seed(i)) for i in range(4)]


def build(family: str, **more: Any) -> Any:
    import transformers

    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**{**BASE, **FAMILIES[family][0], **more})
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.15)
    return model


@pytest.mark.parametrize("family", FAMILIES)
def test_separate_experts_compute_what_fused_ones_do(family: str) -> None:
    model = build(family).double()
    model.set_experts_implementation("eager")
    with torch.no_grad():
        wanted = model(input_ids=torch.stack(WINDOWS)).logits
        whole = sum(parameter.numel() for parameter in model.parameters())
        assert len(separate_experts(model)) == FAMILIES[family][1]
        got = model(input_ids=torch.stack(WINDOWS)).logits
    assert torch.allclose(got, wanted, rtol=1e-9, atol=1e-9)
    assert sum(parameter.numel() for parameter in model.parameters()) == whole
    parts = anatomy(model)
    assert not [name for name in parts.uncovered if "expert" in name]
    assert sum(".experts." in matrix.path for matrix in parts.matrices) == 8 * FAMILIES[family][1]


def rounded(model: Any, weights: WeightSpec, activations: ActivationSpec | None) -> tuple[Any, Any]:
    rules = (Rule("*", LayerSpec(weights, activations)),)
    layers = plan(model, anatomy(model), "w4", rules, {}, lambda *_: "").layers
    return tiny_language.finished(round_decoder(model, layers, WINDOWS, 2, StopToken()))  # type: ignore[no-any-return]


def routed(choose: Any) -> Any:
    """A model whose first router has its choice made by ``choose``, from what it reads and the numbers that it chose."""
    model = build("Qwen3Moe")
    separate_experts(model)
    gate = model.model.layers[0].mlp.gate
    original = gate.forward

    def forward(hidden: Any) -> Any:
        logits, weights, chosen = original(hidden)
        return logits, weights, choose(hidden, chosen)

    gate.forward = forward
    return model


def without_one() -> Any:
    """The last expert of the first block is never chosen."""
    return routed(lambda hidden, chosen: chosen.clamp(max=2))


def test_an_expert_that_no_token_reached_is_rounded_to_nearest_and_says_so() -> None:
    _, told = rounded(without_one(), WeightSpec(4, "per-group", 8, method="gptq"), None)
    notes = {name: note.note for name, note in told.items() if "layers.0.mlp.experts" in name}
    assert len(notes) == 8
    for name, note in notes.items():
        assert (note is not None and "no calibration text reached it" in note) is (".experts.3." in name), name


def test_an_expert_that_a_later_batch_reaches_is_calibrated_on_it() -> None:
    entered: list[Any] = []

    def choose(hidden: Any, chosen: Any) -> Any:
        """The first batch never chooses the last expert, all others do."""
        if not entered:
            entered.append(hidden.clone())
        first = bool(torch.allclose(hidden, entered[0], atol=1e-3))
        return chosen.clamp(max=2) if first else chosen

    _, told = rounded(routed(choose), WeightSpec(8, method="gptq"), None)
    assert not any(note.note and "no calibration text" in note.note for name, note in told.items() if "layers.0.mlp.experts" in name)


def test_static_grids_of_an_unreached_expert_are_those_of_its_neighbours() -> None:
    decoder, _ = rounded(without_one(), WeightSpec(8), ActivationSpec(8))
    grids = {path: matrix.grid for path, matrix in decoder.matrices.items() if "layers.0.mlp.experts" in path}
    steps = {path: grid.scale for path, grid in grids.items()}
    assert steps["model.layers.0.mlp.experts.3.down_proj"] == max(s for path, s in steps.items() if path.endswith("down_proj"))


@pytest.mark.parametrize("family", ["Qwen3Moe", "GptOss", "Mixtral"])
def test_a_mixture_of_experts_is_quantized_stored_and_read_back(family: str, tmp_path: Path) -> None:
    tiny_language.write_folder(tmp_path / "tiny", build(family))
    (tmp_path / "text.txt").write_text(tiny_language.sentences(400))
    data = {"name": str(tmp_path / "text.txt"), "calibration": 4, "limit": 64, "stride": 32, "context": 32}
    outcome = driving.drive(Recipe.make(model=str(tmp_path / "tiny"), data=data, qat={"mode": "never"}, preset="w4a8"), tmp_path / "run")
    assert outcome.error is None
    rows = {row["name"]: row["actual"] for row in outcome.data["layers"]}
    experts = {name: actual for name, actual in rows.items() if ".experts." in name}
    assert len(experts) == 16 and all(actual.startswith("w4") for actual in experts.values())
    assert outcome.data["ptq"]["size_bytes"] < 0.45 * outcome.data["baseline"]["size_bytes"]
    loaded = engine.load_quantized(tmp_path / "run")
    assert any(isinstance(module, SeparateExperts) for module in loaded.decoder.twin.modules())
    assert torch.isfinite(loaded(torch.arange(12))).all()
    told = [event.text for event in outcome.of(Notice) if "experts saw no token" in event.text]
    assert len(told) == bool(outcome.data.get("unseen_experts"))


def test_a_model_with_fused_experts_is_not_changed_by_what_looks_at_it() -> None:
    model = build("Olmoe")
    twin = copy.deepcopy(model)
    separate_experts(twin)
    assert not any(isinstance(module, SeparateExperts) for module in model.modules())
