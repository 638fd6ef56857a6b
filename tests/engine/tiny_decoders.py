"""Small random decoders of transformers' families, and ids that enter them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from engine.lowering.modules.capture import Batch, capture

SMALL = {"vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48, "pad_token_id": 0}
# Family: its class, what its configuration adds, where its blocks are, and who takes back the scale of which group.
FAMILIES: dict[str, tuple[str, dict[str, Any], str, dict[str, str | None]]] = {
    "gpt2": (
        "GPT2", {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 50, "n_positions": 64, "bos_token_id": 0, "eos_token_id": 0}, "h",
        {"attn.c_attn": "ln_1", "attn.c_proj": "attn.c_attn", "mlp.c_fc": "ln_2", "mlp.c_proj": None},
    ),
    "llama": (
        "Llama", {}, "layers",
        {"self_attn.q_proj self_attn.k_proj self_attn.v_proj": "input_layernorm", "self_attn.o_proj": "self_attn.v_proj",
         "mlp.gate_proj mlp.up_proj": "post_attention_layernorm", "mlp.down_proj": "mlp.up_proj"},
    ),
    "llama with shared keys and values": (
        "Llama", {"num_key_value_heads": 2}, "layers",
        {"self_attn.q_proj self_attn.k_proj self_attn.v_proj": "input_layernorm", "self_attn.o_proj": None,
         "mlp.gate_proj mlp.up_proj": "post_attention_layernorm", "mlp.down_proj": "mlp.up_proj"},
    ),
    "mistral": (
        "Mistral", {"num_key_value_heads": 4, "sliding_window": 5}, "layers",
        {"self_attn.q_proj self_attn.k_proj self_attn.v_proj": "input_layernorm", "self_attn.o_proj": "self_attn.v_proj",
         "mlp.gate_proj mlp.up_proj": "post_attention_layernorm", "mlp.down_proj": "mlp.up_proj"},
    ),
    "qwen2 with windows in one block": (
        "Qwen2", {"num_key_value_heads": 4, "use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1}, "layers",
        {"self_attn.q_proj self_attn.k_proj self_attn.v_proj": "input_layernorm", "self_attn.o_proj": "self_attn.v_proj",
         "mlp.gate_proj mlp.up_proj": "post_attention_layernorm", "mlp.down_proj": "mlp.up_proj"},
    ),
    "opt": (
        "OPT", {"ffn_dim": 48, "max_position_embeddings": 64, "word_embed_proj_dim": 32}, "decoder.layers",
        {"self_attn.q_proj self_attn.k_proj self_attn.v_proj": "self_attn_layer_norm", "self_attn.out_proj": "self_attn.v_proj",
         "fc1": "final_layer_norm", "fc2": "fc1"},
    ),
    "opt with norms behind": (
        "OPT", {"ffn_dim": 48, "max_position_embeddings": 64, "word_embed_proj_dim": 32, "do_layer_norm_before": False}, "decoder.layers",
        {"self_attn.q_proj self_attn.k_proj self_attn.v_proj": None, "self_attn.out_proj": "self_attn.v_proj", "fc1": None, "fc2": "fc1"},
    ),
    "pythia": (
        "GPTNeoX", {}, "layers",
        {"attention.query_key_value": "input_layernorm", "attention.dense": None,
         "mlp.dense_h_to_4h": "post_attention_layernorm", "mlp.dense_4h_to_h": None},
    ),
    "gemma": (
        "Gemma", {"num_key_value_heads": 4, "head_dim": 8}, "layers",
        {"self_attn.q_proj self_attn.k_proj self_attn.v_proj": None, "self_attn.o_proj": "self_attn.v_proj",
         "mlp.gate_proj mlp.up_proj": None, "mlp.down_proj": "mlp.up_proj"},
    ),
}  # fmt: skip


def decoder(family: str = "gpt2", seed: int = 0) -> nn.Module:
    """The decoder without its head, weights large enough that quantizing them shows."""
    import transformers

    name, more, _, _ = FAMILIES[family]
    torch.manual_seed(seed)
    config = getattr(transformers, f"{name}Config")(**(more if name == "GPT2" else SMALL | more))
    model: nn.Module = getattr(transformers, f"{name}Model")(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.normal_(0, 0.2)
            elif parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter) * 0.3)
    return model


def blocks_of(model: nn.Module, family: str = "gpt2") -> list[tuple[str, nn.Module]]:
    path = FAMILIES[family][2]
    return [(f"{path}.{i}", block) for i, block in enumerate(model.get_submodule(path))]  # type: ignore[arg-type]


def texts(count: int = 4, seed: int = 5) -> list[tuple[Tensor, Tensor | None]]:
    """Batches of two rows, the second with padding on the right."""
    generator = torch.Generator().manual_seed(seed)
    keep = torch.ones(2, 20, dtype=torch.bool)
    keep[1, 13:] = False
    return [(torch.randint(1, 50, (2, 20), generator=generator) * keep, keep) for _ in range(count)]


def captured(model: nn.Module, family: str = "gpt2", count: int = 4) -> list[Batch]:
    return capture(lambda ids: model(ids, use_cache=False), [block for _, block in blocks_of(model, family)], texts(count))
