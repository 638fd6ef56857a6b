"""Families that share keys and values, read layers twice, route tokens, have no cache or ask layers for their weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import driving
import pytest
import tiny_language
import torch
from torch import Tensor, nn

from engine import Recipe
from engine.algorithms.gram import Gram
from engine.errors import EngineError
from engine.events.cancellation import StopToken
from engine.kernels.matrix.kind import kind_of
from engine.lowering.modules import blocks as sequential
from engine.lowering.modules.block_linears import linears
from engine.lowering.modules.capture import Batch, capture, left_beside
from engine.lowering.modules.folding import groups_of
from engine.lowering.modules.layers import plan
from engine.lowering.modules.rounding import round_decoder
from engine.lowering.modules.runtime import HeldElsewhere
from engine.models.anatomy import anatomy, blocks_of
from engine.recipe.spec import LayerSpec, Rule, WeightSpec
from engine.tasks.generation import continuation, proceed

ENDS = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 0}
BASE = {
    "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 48,
    "max_position_embeddings": 64, "vocab_size": 300, **ENDS,
}  # fmt: skip
TYPES = ["sliding_attention", "full_attention"] * 2
SHARING = {"head_dim": 8, "num_kv_shared_layers": 2, "hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 300,
           "sliding_window": 16, "layer_types": TYPES}  # fmt: skip
EXPERTS = {"num_local_experts": 4, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", BASE),
    "gemma3": ("Gemma3TextConfig", {**BASE, "head_dim": 8}),
    "gemma4": ("Gemma4TextConfig", {**BASE, **SHARING, "global_head_dim": 8}),
    "gemma3n": ("Gemma3nTextConfig", {**BASE, **SHARING, "laurel_rank": 8, "altup_num_inputs": 3,
                                      "activation_sparsity_pattern": [0.5, 0.5, 0.0, 0.0]}),
    "phimoe": ("PhimoeConfig", {**BASE, **EXPERTS}),
    "llama4": ("Llama4TextConfig", {**BASE, **EXPERTS, "head_dim": 8, "intermediate_size_mlp": 48, "interleave_moe_layer_step": 2}),
    "openai-gpt": ("OpenAIGPTConfig", {"vocab_size": 300, "n_positions": 64, "n_embd": 32, "n_layer": 2, "n_head": 4}),
}  # fmt: skip


def build(name: str) -> Any:
    import transformers

    kind, options = FAMILIES[name]
    torch.manual_seed(0)
    return transformers.AutoModelForCausalLM.from_config(getattr(transformers, kind)(**options)).eval()


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_a_matrix_is_calibrated_on_all_that_it_reads(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second moments that GPTQ saw are those of the finished model's inputs: of every call, with the embeddings as rounded."""
    model, seen = build(name), {}
    original = sequential.Place.inputs_of

    def inputs_of(place: Any, group: Any, before: nn.Module | None = None, judged: bool = False) -> Gram:
        gram = original(place, group, before)  # none is held back
        # Rounding gives the sums away when it has done with them.
        seen.update({member.name: (gram.count, gram.second.clone()) for member in group.members})
        return gram

    monkeypatch.setattr(sequential.Place, "inputs_of", inputs_of)
    draw = torch.Generator().manual_seed(0)
    windows = [torch.randint(300, (24,), generator=draw) for _ in range(4)]
    four = WeightSpec(4, "per-group", 16, symmetric=False)
    rules = (Rule("*embed*", LayerSpec(four)), Rule("*", LayerSpec(replace(four, method="gptq"))))
    layers = plan(model, anatomy(model), "w4", rules, {}, lambda *_: "").layers
    decoder, _ = tiny_language.finished(round_decoder(model, layers, windows, 2, StopToken()))
    read: dict[str, Gram] = {}
    for path in seen:
        module = decoder.twin.get_submodule(path)
        read[path] = Gram(linears(module)[0].shape[1] if kind_of(module) else 0)
        module.register_forward_pre_hook(lambda _, given, gram=read[path]: gram.add(given[0]))
    with torch.no_grad():
        for start in (0, 2):
            decoder.twin(input_ids=torch.stack(windows[start : start + 2]), use_cache=False)
    assert len(seen) >= 8
    for path, (count, second) in seen.items():
        assert count == read[path].count, path
        # What a router that is read twice reads the second time depends on layers that are rounded after it.
        allowed = 0.2 if "modality_router" in path else 1e-3
        assert (second - read[path].second).norm() <= allowed * read[path].second.norm(), path


class Sharing(nn.Module):
    """Attention's values go through a projection, and into ``shared`` for a later block."""

    def __init__(self) -> None:
        super().__init__()
        self.v, self.o = nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False)

    def forward(self, hidden_states: Tensor, shared: dict[str, tuple[Tensor, ...]]) -> Tensor:
        values = self.v(hidden_states)
        shared["full"] = (values,)
        return hidden_states + self.o(values)


def test_a_scale_is_not_folded_into_values_that_a_later_block_reads() -> None:
    torch.manual_seed(0)
    block, hidden = Sharing().eval(), torch.randn(2, 3, 8)
    batch = Batch(hidden, None, [((), {"shared": {}})])
    groups = groups_of(block, linears(block), batch, 0)
    assert [group.source for group in groups] == [None, None]
    assert torch.equal(left_beside(batch, 0)[0].isfinite(), torch.ones(2, 3, 8, dtype=torch.bool))


def test_the_original_keeps_keys_and_values_of_its_own() -> None:
    model = build("gemma4")
    blocks = list(blocks_of(model)[1])
    (batch,) = capture(lambda ids: model(input_ids=ids, use_cache=False), blocks, [(torch.arange(12)[None], None)])
    batch.keep_original()
    own, shared = (others[0][1]["shared_kv_states"] for others in (batch.original_others, batch.others))
    assert own is not shared and all(named["shared_kv_states"] is own for _, named in batch.original_others)


@pytest.mark.parametrize("name", ["phimoe", "llama4", "openai-gpt", "gemma4", "gemma3n"])
def test_a_family_runs_to_the_end(name: str, tmp_path: Path) -> None:
    tiny_language.write_folder(tmp_path / "tiny", build(name))
    (tmp_path / "text.txt").write_text(tiny_language.sentences(400))
    data = {"name": str(tmp_path / "text.txt"), "calibration": 4, "limit": 64, "stride": 32, "context": 32}
    outcome = driving.drive(Recipe.make(model=str(tmp_path / "tiny"), data=data, qat={"mode": "never"}, preset="w4a8"), tmp_path / "run")
    assert outcome.error is None
    assert outcome.data["ptq"]["value"] < 1.05 * outcome.data["baseline"]["value"]


def test_a_layer_that_returns_more_than_a_product_is_no_matrix_to_replace() -> None:
    router = build("phimoe").model.layers[0].mlp.router
    assert isinstance(router, nn.Linear) and kind_of(router) is None and kind_of(nn.Linear(2, 3)) == "Linear"


def test_a_weight_that_is_held_as_integers_says_where_it_is_and_not_what() -> None:
    weight: Any = HeldElsewhere("model.embed_tokens", torch.Size([96, 16]), "cpu")
    assert weight.device == torch.device("cpu") and weight.dtype == torch.float32 and weight.shape == (96, 16)
    for use in (lambda: nn.functional.linear(torch.ones(1, 16), weight), lambda: weight[0], lambda: weight.T):
        with pytest.raises(EngineError, match="computes with the weight of model.embed_tokens past that layer"):
            use()


def test_a_model_without_a_cache_reads_its_text_again_for_each_token() -> None:
    model, ids = build("openai-gpt"), torch.arange(5)
    found = list(continuation(model, ids, 6, stop=StopToken()))
    wanted = ids[None]
    with torch.no_grad():
        for token in found:
            assert token == int(model(input_ids=wanted).logits[0, -1].argmax())
            wanted = torch.cat([wanted, torch.tensor([[token]])], 1)
        _, held = proceed(model, ids[None], None)
        logits, _ = proceed(model, torch.tensor([[7]]), held)
    assert torch.equal(logits, model(input_ids=torch.tensor([[0, 1, 2, 3, 4, 7]])).logits)
