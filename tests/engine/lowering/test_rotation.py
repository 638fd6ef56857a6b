"""Rotations folded into weights: the function stays, what stands out does not; and what cannot be rotated is told in a line."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import driving
import pytest
import tiny_language
import torch
from families import build
from quantized_families import lively, some_ids

from engine.errors import EngineError
from engine.events.event import Notice
from engine.lowering.modules.rotation import rotate
from engine.numerics.orthogonal import hadamard, mean_keeping, spreading
from engine.recipe.recipe import Recipe

SIZES = (1, 2, 4, 8, 12, 20, 28, 36, 44, 48, 64, 76, 80, 96, 104, 128, 144, 160, 256, 768)


@pytest.mark.parametrize("size", SIZES)
def test_hadamard_matrices_have_orthogonal_rows_of_ones(size: int) -> None:
    found = hadamard(size)
    assert found is not None
    assert torch.equal(found.abs(), torch.ones_like(found)) and (found[0] == 1).all() and (found[:, 0] == 1).all()
    assert torch.equal(found @ found.T, size * torch.eye(size, dtype=torch.float64))


@pytest.mark.parametrize("size", [3, 6, 92, 50, 16, 768])
def test_spreading_matrices_are_orthogonal_and_keep_means_where_asked(size: int) -> None:
    eye = torch.eye(size, dtype=torch.float64)
    for turn, known in (spreading(size, 3), mean_keeping(size, 3)):
        assert known is (hadamard(size) is not None)
        assert torch.allclose(turn @ turn.T, eye, atol=1e-10)
    ones = torch.ones(size, dtype=torch.float64)
    assert torch.allclose(mean_keeping(size, 3)[0] @ ones, ones, atol=1e-10)
    if size == 768:
        assert mean_keeping(size, 3)[0].abs().max() < 0.25, "what stands out is spread"


def gemma(**changes: Any) -> Any:
    import transformers

    torch.manual_seed(0)
    options = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}
    config = transformers.GemmaConfig(**{**options, "head_dim": 8, "vocab_size": 96, **changes}, pad_token_id=0)
    return transformers.AutoModelForCausalLM.from_config(config)


@torch.no_grad()
@pytest.mark.parametrize("name", ["gpt2", "llama", "mistral", "qwen2", "qwen3", "pythia", "gemma"])
def test_a_rotated_model_is_the_same_function(name: str) -> None:
    model = lively(gemma() if name == "gemma" else build(name))
    wanted = model(some_ids()).logits
    before = copy.deepcopy(model)
    tied = model.get_input_embeddings().weight is model.get_output_embeddings().weight
    done = rotate(model, some_ids())
    assert done.width == 16 and done.hadamard and done.untied is tied
    assert done.heads is (name != "pythia"), "GPT-NeoX has the queries, keys and values of each head together"
    found = model(some_ids()).logits
    assert (found - wanted).abs().max() < 1e-5 * wanted.abs().max()
    moved = [not torch.allclose(a, b, atol=1e-3) for a, b in zip(model.parameters(), before.parameters(), strict=False) if a.dim() > 1]
    assert all(moved)
    # The model that its configuration describes is the one that was rotated.
    assert model.config.tie_word_embeddings is False
    assert not any(a is b for a, b in [(model.get_input_embeddings().weight, model.get_output_embeddings().weight)])


@torch.no_grad()
@pytest.mark.parametrize(("name", "width"), [("llama", 24), ("gpt2", 24), ("qwen2", 36), ("llama", 30)])
def test_widths_that_are_no_power_of_two_are_rotated(name: str, width: int) -> None:
    key = "n_embd" if name == "gpt2" else "hidden_size"
    model = lively(build(name, **{key: width, **({} if name == "gpt2" else {"num_attention_heads": 2, "head_dim": 6})}))
    wanted = model(some_ids()).logits
    done = rotate(model, some_ids())
    assert done.hadamard is (width % 4 == 0) and ("random rotation" in done.text) is not (done.hadamard and done.head_hadamard)
    assert (model(some_ids()).logits - wanted).abs().max() < 1e-5 * wanted.abs().max()


@torch.no_grad()
@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_a_channel_that_stands_out_is_spread(name: str) -> None:
    model = lively(build(name))
    # One channel of the hidden states is far beyond the others.
    model.get_input_embeddings().weight[:, 5] *= 30
    seen: dict[str, float] = {}

    def watch(key: str) -> Any:
        def hook(module: Any, args: Any, output: Any) -> None:
            hidden = (output[0] if isinstance(output, tuple) else output).flatten(0, -2)
            seen[key] = float((hidden.abs().amax(-1) / hidden.square().mean(-1).sqrt()).mean())

        return hook

    for key in ("before", "after"):
        block = model.transformer.h[0] if name == "gpt2" else model.model.layers[0]
        handle = block.register_forward_hook(watch(key))
        model(some_ids())
        handle.remove()
        if key == "before":
            rotate(model, some_ids())
    assert seen["after"] < 0.85 * seen["before"]


def test_what_no_rotation_passes_is_told_in_a_line_and_left_alone() -> None:
    model = lively(build("gemma3"))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(EngineError, match="norm.*leave rotation out") as caught:
        rotate(model, some_ids())
    assert "\n" not in str(caught.value)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    with pytest.raises(EngineError, match="leave rotation out"):
        rotate(lively(build("opt")), some_ids())


def test_a_run_rounds_rotated_weights_and_compares_with_the_model(tmp_path: Path) -> None:
    tiny_language.write_folder(tmp_path / "tiny")
    (tmp_path / "text.txt").write_text(tiny_language.sentences(400))
    data = {"name": str(tmp_path / "text.txt"), "calibration": 8, "limit": 320, "stride": 16}
    asked = Recipe.make(model=str(tmp_path / "tiny"), data=data, qat={"mode": "never"}, rotation="hadamard", preset="w4a4")
    outcome = driving.drive(asked, tmp_path / "run")
    assert outcome.error is None
    report = outcome.data
    assert report["rotation"]["untied"] and any("the logits are the same" in event.text for event in outcome.of(Notice))
    assert report["baseline"]["size_bytes"] == 4 * sum(p.numel() for p in tiny_language.gpt2().parameters())
    rows = {row["name"]: row for row in report["layers"]}
    assert rows["transformer.h.0.mlp.c_fc"]["actual"].endswith("a4 per-token 64 dynamic")
    assert rows["transformer.h.0.mlp.c_fc"]["kernel"] == "simulation int4"
    assert rows["lm_head"]["actual"].startswith("w8 per-channel")
    (export,) = report["exports"]
    assert export["parity"]["max_abs"] < 1e-4
