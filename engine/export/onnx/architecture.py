"""What a decoder computes, as data: which modules stand where in each block. The families that exports write as a graph."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from engine.errors import EngineError

# How one matrix holds queries, keys and values: one after the other, or head by head.
Fused = Literal["parts", "heads", ""]
_ROPES = ("default", "linear", "llama3", "yarn", "proportional")
_ACTIVATIONS = {
    "gelu": "gelu", "gelu_new": "tanh", "gelu_fast": "tanh", "gelu_pytorch_tanh": "tanh", "relu": "relu", "silu": "silu", "swish": "silu",
}  # fmt: skip


@dataclass(frozen=True)
class Block:
    """Module paths of one block. ``qkv`` is one path where ``fused``, else those of queries, keys, values; ``gate`` is empty where
    the MLP has none; ``query_norm`` and ``key_norm`` are of single heads. ``window`` is how many tokens are seen, None for all.
    ``order`` is ``before`` (norms before the parts), ``after`` (behind their sums) or ``parallel`` (both parts read the block's input)."""

    norms: tuple[str, str]
    qkv: tuple[str, ...]
    fused: Fused
    out: str
    gate: str
    up: str
    down: str
    scale: float
    query_norm: str = ""
    key_norm: str = ""
    window: int | None = None
    order: Literal["before", "after", "parallel"] = "before"


@dataclass(frozen=True)
class Rotary:
    """Rotary positions: angles are position times ``frequencies`` (n,), for the first 2n numbers of a head; sine and cosine are
    multiplied by ``scale``."""

    frequencies: Tensor
    scale: float


@dataclass(frozen=True)
class Architecture:
    """``positions`` is the path of learned positions, empty for none, the first ``skipped`` rows of which stand for none.
    ``enter`` and ``leave`` are projections around the blocks, ``norm`` is behind them; empty where there is none. ``activation`` is
    gelu, tanh (GELU by its approximation), relu or silu."""

    embedding: str
    positions: str
    skipped: int
    enter: str
    blocks: tuple[Block, ...]
    norm: str
    leave: str
    head: str
    heads: int
    shared: int
    width: int
    activation: str
    rotary: Rotary | None

    @property
    def repeats(self) -> int:
        """Query heads that share a head of keys and values."""
        return self.heads // self.shared


def architecture(model: Any) -> Architecture:
    """That of a transformers decoder. Raises EngineError, in one line, for families and options that are not known here."""
    config = model.config
    make = _FAMILIES.get(config.model_type)
    if make is None:
        raise EngineError(f"graphs are written of {', '.join(_FAMILIES)}; a decoder of type {config.model_type} is not among them")
    return make(model, config)


def _gpt2(model: Any, config: Any) -> Architecture:
    if config.add_cross_attention:
        raise EngineError("GPT-2 with cross-attention is not written as a graph: its other input is none of a decoder")
    blocks, width = [], config.n_embd // config.n_head
    for i in range(len(model.transformer.h)):
        at = f"transformer.h.{i}"
        scale = (width**-0.5 if config.scale_attn_weights else 1.0) / (i + 1 if config.scale_attn_by_inverse_layer_idx else 1)
        blocks.append(
            Block((f"{at}.ln_1", f"{at}.ln_2"), (f"{at}.attn.c_attn",), "parts", f"{at}.attn.c_proj", "", f"{at}.mlp.c_fc",
                  f"{at}.mlp.c_proj", scale)
        )  # fmt: skip
    return Architecture("transformer.wte", "transformer.wpe", 0, "", tuple(blocks), "transformer.ln_f", "", "lm_head", config.n_head,
                        config.n_head, width, _activation(config.activation_function), None)  # fmt: skip


def _llama(model: Any, config: Any) -> Architecture:
    """Also of Mistral and Qwen: they differ in biases, which their modules have, in norms of heads and in windows."""
    blocks = []
    kinds = getattr(config, "layer_types", None)
    for i, block in enumerate(model.model.layers):
        at, it = f"model.layers.{i}", block.self_attn
        windowed = kinds[i] == "sliding_attention" if kinds else config.model_type == "mistral"
        window = getattr(config, "sliding_window", None) if windowed else None
        names = [f"{at}.self_attn.{name}" if hasattr(it, name) else "" for name in ("q_norm", "k_norm")]
        blocks.append(
            Block((f"{at}.input_layernorm", f"{at}.post_attention_layernorm"), tuple(f"{at}.self_attn.{n}_proj" for n in "qkv"), "",
                  f"{at}.self_attn.o_proj", f"{at}.mlp.gate_proj", f"{at}.mlp.up_proj", f"{at}.mlp.down_proj", float(it.scaling),
                  names[0], names[1], window)
        )  # fmt: skip
    return Architecture("model.embed_tokens", "", 0, "", tuple(blocks), "model.norm", "", "lm_head", config.num_attention_heads,
                        config.num_key_value_heads, int(model.model.layers[0].self_attn.head_dim), _activation(config.hidden_act),
                        _rotary(model.model.rotary_emb))  # fmt: skip


def _opt(model: Any, config: Any) -> Architecture:
    decoder, at = model.model.decoder, "model.decoder"
    blocks = []
    for i, block in enumerate(decoder.layers):
        layer = f"{at}.layers.{i}"
        blocks.append(
            Block((f"{layer}.self_attn_layer_norm", f"{layer}.final_layer_norm"), tuple(f"{layer}.self_attn.{n}_proj" for n in "qkv"), "",
                  f"{layer}.self_attn.out_proj", "", f"{layer}.fc1", f"{layer}.fc2", float(block.self_attn.scaling),
                  order="before" if config.do_layer_norm_before else "after")
        )  # fmt: skip
    parts = [f"{at}.{name}" if getattr(decoder, name) is not None else "" for name in ("project_in", "final_layer_norm", "project_out")]
    skipped = int(decoder.embed_positions.offset)
    return Architecture(f"{at}.embed_tokens", f"{at}.embed_positions", skipped, parts[0], tuple(blocks), parts[1], parts[2], "lm_head",
                        config.num_attention_heads, config.num_attention_heads,
                        config.hidden_size // config.num_attention_heads, _activation(config.activation_function), None)  # fmt: skip


def _neox(model: Any, config: Any) -> Architecture:
    blocks = []
    for i, block in enumerate(model.gpt_neox.layers):
        at = f"gpt_neox.layers.{i}"
        blocks.append(
            Block((f"{at}.input_layernorm", f"{at}.post_attention_layernorm"), (f"{at}.attention.query_key_value",), "heads",
                  f"{at}.attention.dense", "", f"{at}.mlp.dense_h_to_4h", f"{at}.mlp.dense_4h_to_h", float(block.attention.scaling),
                  order="parallel" if config.use_parallel_residual else "before")
        )  # fmt: skip
    head = "embed_out" if hasattr(model, "embed_out") else "lm_head"
    return Architecture("gpt_neox.embed_in", "", 0, "", tuple(blocks), "gpt_neox.final_layer_norm", "", head, config.num_attention_heads,
                        config.num_attention_heads, config.hidden_size // config.num_attention_heads, _activation(config.hidden_act),
                        _rotary(model.gpt_neox.rotary_emb))  # fmt: skip


def _rotary(module: Any) -> Rotary:
    if module.rope_type not in _ROPES:
        raise EngineError(f"rotary positions of type {module.rope_type!r} change with the length of the text: no graph is written of them")
    return Rotary(module.inv_freq.detach().to(torch.float32), float(module.attention_scaling))


def _activation(name: str) -> str:
    if name not in _ACTIVATIONS:
        raise EngineError(f"the activation {name!r} is not written as a graph: known are {', '.join(_ACTIVATIONS)}")
    return _ACTIVATIONS[name]


_FAMILIES: dict[str, Callable[[Any, Any], Architecture]] = {
    "gpt2": _gpt2, "llama": _llama, "mistral": _llama, "qwen2": _llama, "qwen3": _llama, "opt": _opt, "gpt_neox": _neox,
}  # fmt: skip
