"""Recurrent models: those that cannot be quantized are refused as they are loaded, and the others are not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import driving
import pytest
import tiny_language
import torch

from engine import Recipe
from engine.errors import EngineError
from engine.events.event import StageFinished

ATTENTION = {"num_attention_heads": 2, "num_key_value_heads": 2, "intermediate_size": 24, "max_position_embeddings": 32}
JAMBA = {"attn_layer_offset": 1, "attn_layer_period": 2, "num_experts": 2, "num_experts_per_tok": 1, "use_mamba_kernels": False}
BAMBA = {"mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_n_groups": 1, "attn_layer_indices": [1]}
RECURRENT = {
    "Mamba": ({"state_size": 8}, "MambaForCausalLM.: it has no cache of keys and values"),
    "Rwkv": ({"attention_hidden_size": 16}, "RwkvForCausalLM.: it has no cache of keys and values"),
    "RecurrentGemma": ({**ATTENTION, "lru_width": 16, "num_hidden_layers": 3, "attention_window_size": 16}, "it has no cache of keys"),
    "Jamba": ({**ATTENTION, **JAMBA}, r"what model\.layers\.0\.mamba\.dt_proj reads cannot be seen for calibration"),
}


def drive(kind: str, options: dict[str, Any], place: Path) -> driving.Outcome:
    import transformers

    shape = {"hidden_size": 16, "num_hidden_layers": 2, **options, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    config = getattr(transformers, f"{kind}Config")(vocab_size=tiny_language.ROWS, **shape)
    torch.manual_seed(0)
    tiny_language.write_folder(place / "model", transformers.AutoModelForCausalLM.from_config(config))
    (place / "text.txt").write_text(tiny_language.sentences(400))
    data = {"name": str(place / "text.txt"), "calibration": 8, "limit": 320, "stride": 16, "context": 32}
    recipe = Recipe.make(model=str(place / "model"), data=data, preset="w4", qat={"mode": "never"})
    return driving.drive(recipe, place / "run")


@pytest.mark.parametrize("kind", sorted(RECURRENT))
def test_what_cannot_be_calibrated_is_refused_as_it_is_loaded(kind: str, tmp_path: Path) -> None:
    options, says = RECURRENT[kind]
    outcome = drive(kind, options, tmp_path)
    with pytest.raises(EngineError, match=f"is a recurrent model .*{says}.*; give a decoder with attention"):
        raise outcome.error or AssertionError("it was not refused")
    assert "\n" not in str(outcome.error) and not outcome.of(StageFinished) and not (tmp_path / "run").exists()


def test_recurrent_layers_beside_attention_are_quantized(tmp_path: Path) -> None:
    outcome = drive("Bamba", {**ATTENTION, **BAMBA}, tmp_path)
    assert outcome.error is None
    assert {row["name"]: row["actual"] for row in outcome.data["layers"]}["model.layers.0.mamba.in_proj"].startswith("w4")
