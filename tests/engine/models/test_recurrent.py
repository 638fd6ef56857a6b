"""Recurrent models: what can be seen of them is quantized; a state that cannot be is refused as the model is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import driving
import pytest
import tiny_language
import torch

import engine
from engine import Recipe
from engine.errors import EngineError
from engine.events.event import StageFinished
from engine.tasks.generation import proceed

ATTENTION = {"num_attention_heads": 2, "num_key_value_heads": 2, "intermediate_size": 24, "max_position_embeddings": 32}
JAMBA = {"attn_layer_offset": 1, "attn_layer_period": 2, "num_experts": 2, "num_experts_per_tok": 1, "use_mamba_kernels": False}
BAMBA = {"mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_n_groups": 1, "attn_layer_indices": [1]}
# By family: what it is built of, a matrix that is quantized, and one that the model multiplies by past its layer.
RECURRENT = {
    "Mamba": ({"state_size": 8}, "backbone.layers.0.mixer.in_proj", "backbone.layers.0.mixer.dt_proj"),
    "FalconMamba": ({"state_size": 8}, "backbone.layers.1.mixer.out_proj", "backbone.layers.1.mixer.dt_proj"),
    "Rwkv": ({"attention_hidden_size": 16}, "rwkv.blocks.0.attention.key", None),
    "Jamba": ({**ATTENTION, **JAMBA}, "model.layers.0.mamba.in_proj", "model.layers.0.mamba.dt_proj"),
    "Bamba": ({**ATTENTION, **BAMBA}, "model.layers.0.mamba.in_proj", None),
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
def test_recurrent_layers_are_quantized(kind: str, tmp_path: Path) -> None:
    options, quantized, bypassed = RECURRENT[kind]
    outcome = drive(kind, options, tmp_path)
    assert outcome.error is None
    layers = {row["name"]: row for row in outcome.data["layers"]}
    assert layers[quantized]["actual"].startswith("w4")
    assert outcome.data["ptq"]["error"]["sqnr_db"] > 12
    if bypassed is not None:
        assert layers[bypassed]["actual"] == "fp32" and "past the layer" in layers[bypassed]["reason"]
    # What is read back reads on where it stopped as it reads at once.
    model: Any = engine.load_quantized(tmp_path / "run").decoder.twin
    ids = torch.arange(2, 14)[None]
    whole, past = proceed(model, ids, None)
    first, past = proceed(model, ids[:, :7], None)
    then, _ = proceed(model, ids[:, 7:], past)
    torch.testing.assert_close(torch.cat([first, then[:, -5:]], 1), whole, rtol=0, atol=0.05 * float(whole.abs().max()))


def test_a_state_that_is_kept_in_the_layers_is_refused_as_the_model_is_loaded(tmp_path: Path) -> None:
    options = {**ATTENTION, "lru_width": 16, "num_hidden_layers": 3, "attention_window_size": 16}
    outcome = drive("RecurrentGemma", options, tmp_path)
    with pytest.raises(EngineError, match="is a recurrent model .RecurrentGemmaForCausalLM. that keeps its state in its layers"):
        raise outcome.error or AssertionError("it was not refused")
    assert "\n" not in str(outcome.error) and not outcome.of(StageFinished) and not (tmp_path / "run").exists()
