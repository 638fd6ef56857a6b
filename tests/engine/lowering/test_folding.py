"""Who shares an input, who can take a scale back, and what enters the blocks, over the families of transformers."""

from __future__ import annotations

import pytest
import torch
from tiny_decoders import FAMILIES, blocks_of, captured, decoder, texts
from torch import nn

from engine.errors import EngineError
from engine.lowering.modules.block_linears import linears
from engine.lowering.modules.capture import capture, run_block
from engine.lowering.modules.folding import groups_of


@pytest.mark.parametrize("family", FAMILIES)
def test_scales_are_folded_where_the_output_stays_and_nowhere_else(family: str) -> None:
    model = decoder(family)
    batches = captured(model, family, 1)
    _, block = blocks_of(model, family)[0]
    before = {name: tensor.clone() for name, tensor in block.state_dict().items()}
    groups = groups_of(block, linears(block), batches[0], 0)
    found = {" ".join(m.name for m in group.members): group.source.name if group.source else None for group in groups}
    assert found == FAMILIES[family][3]
    assert all(torch.equal(tensor, before[name]) for name, tensor in block.state_dict().items())
    whole = run_block(block, batches[0], 0)
    for group in groups:
        if group.source is not None:
            group.fold(torch.rand(group.members[0].shape[1]) * 3 + 0.3)
    assert torch.allclose(run_block(block, batches[0], 0), whole, rtol=1e-3, atol=1e-4)
    assert any(not torch.equal(tensor, before[name]) for name, tensor in block.state_dict().items())


@pytest.mark.parametrize("family", FAMILIES)
def test_blocks_run_on_what_was_captured_give_what_the_decoder_gives(family: str) -> None:
    model = decoder(family)
    batches = captured(model, family, 2)
    blocks = blocks_of(model, family)
    left: list[torch.Tensor] = []
    hook = blocks[-1][1].register_forward_hook(lambda _, args, out: left.append(out[0] if isinstance(out, tuple) else out))
    with torch.no_grad():
        for ids, _ in texts(2):
            model(ids, use_cache=False)
        hook.remove()
        for batch, wanted in zip(batches, left, strict=True):
            for index, (_, block) in enumerate(blocks):
                batch.hidden = run_block(block, batch, index)
            assert torch.allclose(batch.hidden, wanted, atol=1e-5)
    assert all("forward" not in block.__dict__ for _, block in blocks)


def test_conv1d_and_linear_are_read_and_written_as_out_by_in() -> None:
    block = blocks_of(decoder())[0][1]
    x = torch.randn(3, 32)
    conv = next(linear for linear in linears(block, "h.0") if linear.name == "h.0.attn.c_attn")
    assert conv.shape == (96, 32) and conv.bias is not None
    assert torch.allclose(conv.module(x), x @ conv.read().T + conv.bias, atol=1e-5)
    new = torch.randn(96, 32)
    conv.write(new)
    assert torch.equal(conv.read(), new) and torch.allclose(conv.module(x), x @ new.T + conv.bias, atol=1e-5)
    plain = linears(nn.Sequential(nn.Linear(4, 7, bias=False)))[0]
    assert plain.shape == (7, 4) and plain.bias is None and plain.name == "0"


def test_blocks_that_are_not_run_and_text_that_is_not_there_are_refused() -> None:
    model = decoder()
    with pytest.raises(EngineError, match="block by block"):
        capture(lambda ids: ids, [block for _, block in blocks_of(model)], texts(1))
    with pytest.raises(EngineError, match="not empty"):
        capture(lambda ids: model(ids), [block for _, block in blocks_of(model)], [])
