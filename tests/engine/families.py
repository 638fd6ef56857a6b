"""The families of decoders in transformers, tiny and with random weights."""

from __future__ import annotations

from typing import Any

import torch

NARROW = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 96, "max_position_embeddings": 32}
GATED = {"self_attn.q_proj": (16, 16), "self_attn.k_proj": (8, 16), "self_attn.v_proj": (8, 16), "self_attn.o_proj": (16, 16),
         "mlp.gate_proj": (24, 16), "mlp.up_proj": (24, 16), "mlp.down_proj": (16, 24)}  # fmt: skip
SHARED_KEYS = {**NARROW, "intermediate_size": 24, "num_key_value_heads": 1}
# The class of the config, its options, where the blocks are, the matrices of a block as (out, in), whether the head is tied.
FAMILIES: dict[str, tuple[str, dict[str, Any], str, dict[str, tuple[int, int]], bool]] = {
    "gpt2": ("GPT2Config", {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32, "vocab_size": 96}, "transformer.h",
             {"attn.c_attn": (48, 16), "attn.c_proj": (16, 16), "mlp.c_fc": (64, 16), "mlp.c_proj": (16, 64)}, True),
    "llama": ("LlamaConfig", SHARED_KEYS, "model.layers", GATED, False),
    "mistral": ("MistralConfig", SHARED_KEYS, "model.layers", GATED, False),
    "qwen2": ("Qwen2Config", {**SHARED_KEYS, "tie_word_embeddings": True}, "model.layers", GATED, True),
    "qwen3": ("Qwen3Config", {**SHARED_KEYS, "head_dim": 8}, "model.layers", GATED, False),
    "opt": ("OPTConfig", {**NARROW, "ffn_dim": 24, "word_embed_proj_dim": 8}, "model.decoder.layers",
            {**{f"self_attn.{n}_proj": (16, 16) for n in ("k", "v", "q", "out")}, "fc1": (24, 16), "fc2": (16, 24)}, True),
    "pythia": ("GPTNeoXConfig", {**NARROW, "intermediate_size": 24}, "gpt_neox.layers",
               {"attention.query_key_value": (48, 16), "attention.dense": (16, 16), "mlp.dense_h_to_4h": (24, 16),
                "mlp.dense_4h_to_h": (16, 24)}, False),
}  # fmt: skip
# Those whose embeddings do more than look rows up, besides OPT's positions, which begin at the third row.
SCALED: dict[str, tuple[str, dict[str, Any]]] = {"gemma3": ("Gemma3TextConfig", {**SHARED_KEYS, "head_dim": 8})}


def build(family: str, **changes: Any) -> Any:
    """``changes`` are to the family's options."""
    import transformers

    kind, given, *_ = SCALED.get(family) or FAMILIES[family]
    options = {**given, **changes}
    torch.manual_seed(0)
    ends = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 0}
    return transformers.AutoModelForCausalLM.from_config(getattr(transformers, kind)(**options, **ends))
