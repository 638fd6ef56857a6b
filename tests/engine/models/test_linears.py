"""Every matrix of every family is found, and every parameter is accounted for."""

from __future__ import annotations

import pytest
import tiny_language
import torch
from families import FAMILIES, SHARED_KEYS, build
from torch import nn

from engine.errors import EngineError
from engine.models.anatomy import anatomy, blocks_of, linears, weight_of


@pytest.mark.parametrize("family", FAMILIES)
def test_every_matrix_is_found(family: str) -> None:
    _, _, path, wanted, tied = FAMILIES[family]
    model = build(family)
    found = anatomy(model)
    assert (found.blocks, found.depth, found.tied_head, found.uncovered) == (path, 2, tied, ())
    for number in range(2):
        assert {m.path.removeprefix(f"{path}.{number}."): m.shape for m in found.in_block(number)} == wanted
    assert found.params == sum(p.numel() for p in model.parameters())
    # What is left has one dimension alone: normalization.
    assert all("norm" in name or ".ln_" in name for name in found.others)
    assert {m.path for m in found.matrices if m.kind != "Embedding"} == {name for name, _ in linears(model)}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_view_of_a_weight_multiplies_as_the_layer_does(family: str) -> None:
    model = build(family)
    for name, module in linears(model):
        weight = weight_of(module)
        x = torch.randn(3, weight.shape[1], generator=torch.Generator().manual_seed(1))
        bias = getattr(module, "bias", None)
        expected = x.double() @ weight.double().T + (0 if bias is None else bias.double())
        torch.testing.assert_close(module(x).double(), expected, rtol=1e-5, atol=1e-5, msg=name)


def test_what_is_written_into_the_view_is_the_layers_own() -> None:
    model = tiny_language.gpt2()
    layer = model.transformer.h[0].mlp.c_fc
    weight_of(layer)[3] = 0
    assert not layer.weight[:, 3].any() and layer.weight[:, 4].all()


def test_a_tied_head_names_what_it_shares_and_counts_nothing() -> None:
    found = anatomy(tiny_language.gpt2())
    head = next(m for m in found.matrices if m.path == "lm_head")
    assert (head.tied, head.params, head.block, found.embedding, found.head) == ("transformer.wte", 0, None, "transformer.wte", "lm_head")


def test_parameters_that_no_layer_holds_are_named() -> None:
    from transformers import MixtralConfig, MixtralForCausalLM

    options = {**SHARED_KEYS, "num_local_experts": 2, "bos_token_id": 0, "eos_token_id": 1}
    model = MixtralForCausalLM(MixtralConfig(**options))
    found = anatomy(model)
    assert found.params == sum(p.numel() for p in model.parameters())
    assert any("experts" in name for name in found.uncovered)


def test_a_model_without_blocks_is_refused() -> None:
    with pytest.raises(EngineError, match="no sequence of blocks"):
        blocks_of(nn.Sequential(nn.Linear(2, 2)))
