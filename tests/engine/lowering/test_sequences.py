"""Token sequences: one graph serves every length, and padding changes nothing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from torch import nn

from engine.lowering.graph.sizes import held_sizes
from engine.lowering.graph.trace import trace
from engine.models.text_models import Logits
from engine.tasks.base import Batch
from engine.tasks.seq2seq import Seq2SeqLogits

_COMMON: dict[str, Any] = {
    "vocab_size": 60, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64,
    "max_position_embeddings": 96, "pad_token_id": 0,
}  # fmt: skip
_DISTIL = {"vocab_size": 60, "dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64, "max_position_embeddings": 96, "pad_token_id": 0}
_MODERN = {**_COMMON, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2, "local_attention": 8}


def _inputs(length: int, rows: int = 3) -> dict[str, torch.Tensor]:
    ids = torch.randint(3, 60, (rows, length), generator=torch.Generator().manual_seed(length))
    mask = torch.ones(rows, length, dtype=torch.long)
    mask[1, length // 2 :] = 0
    return {"input_ids": ids.masked_fill(mask == 0, 0), "attention_mask": mask}


@pytest.mark.parametrize(
    ("family", "given"),
    [("Bert", _COMMON), ("Roberta", _COMMON), ("DistilBert", _DISTIL), ("Albert", {**_COMMON, "embedding_size": 16}),
     ("Electra", {**_COMMON, "embedding_size": 16}), ("MPNet", _COMMON), ("Deberta", _COMMON), ("ModernBert", _MODERN)],
)  # fmt: skip
def test_an_encoder_traced_at_one_length_computes_at_every_other(family: str, given: dict[str, Any]) -> None:
    torch.manual_seed(0)
    plain = getattr(transformers, f"{family}ForSequenceClassification")(getattr(transformers, f"{family}Config")(**given)).eval()
    traced = trace(Logits(plain).eval(), Batch((), _inputs(12), count=3))
    assert held_sizes(traced.module.graph) is None and not traced.untraced
    called = [node.target for node in traced.module.graph.nodes if node.op == "call_module"]
    linear = {path for path in called if isinstance(traced.module.get_submodule(str(path)), nn.Linear)}
    assert len(linear) == sum(isinstance(module, nn.Linear) and "lm_head" not in name for name, module in plain.named_modules())
    with torch.no_grad():
        for length in (5, 12, 33, 80):
            some = _inputs(length)
            wanted = plain(**some).logits
            assert torch.allclose(traced.module(*some.values()), wanted, atol=1e-4)
            alone = {name: value[1:2, : length // 2] for name, value in some.items()}
            assert torch.allclose(traced.module(*alone.values()), wanted[1:2], atol=1e-4)


def test_both_lengths_of_a_sequence_to_sequence_model_are_free() -> None:
    torch.manual_seed(0)
    config = transformers.T5Config(vocab_size=60, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4)
    model = Seq2SeqLogits(transformers.T5ForConditionalGeneration(config)).eval()

    def given(source: int, target: int) -> dict[str, torch.Tensor]:
        return {**_inputs(source), "decoder_input_ids": _inputs(target)["input_ids"]}

    traced = trace(model, Batch((), given(12, 9), count=3))
    assert held_sizes(traced.module.graph) is None
    with torch.no_grad():
        for source, target in ((12, 9), (30, 1), (5, 20), (9, 9)):
            some = given(source, target)
            assert torch.allclose(traced.module(*some.values()), model(**some), atol=1e-4)
