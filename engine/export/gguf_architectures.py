"""What llama.cpp has to know of an architecture of transformers: its name, its metadata, and where its rows lie otherwise.

Keys and layouts are those that llama.cpp's ``convert_hf_to_gguf.py`` writes; names of tensors come from the ``gguf`` package's own map.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from engine.errors import EngineError

Settings = dict[str, Any]


@dataclass(frozen=True)
class Architecture:
    """``name`` is llama.cpp's. ``settings`` gives metadata of a configuration, without the name before each key; it raises EngineError
    for what the format has no place for. ``rows`` gives the order of a tensor's rows in the file, by the module's path, or None where it
    is the model's own. ``raised`` norms are stored with one added, as they multiply. ``rotary`` gives factors for ``rope_freqs``."""

    name: str
    settings: Callable[[Any], Settings]
    rows: Callable[[Any, str], Tensor | None] = lambda config, path: None
    raised: bool = False
    rotary: Callable[[Any], Tensor | None] = lambda config: None


def architecture(config: Any) -> Architecture:
    """Raises EngineError for one that has no mapping here."""
    kind = str(getattr(config, "model_type", ""))
    if kind not in ARCHITECTURES:
        raise EngineError(
            f"GGUF export knows no {kind or 'such architecture'}: give one of {', '.join(ARCHITECTURES)}, or export to safetensors"
        )
    return ARCHITECTURES[kind]


def _gpt2(config: Any) -> Settings:
    _plain(config, {"scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False})
    _activation(config.activation_function, "gelu_new", "gelu_pytorch_tanh", "gelu_fast")
    return {
        "block_count": config.n_layer, "context_length": config.n_positions, "embedding_length": config.n_embd,
        "feed_forward_length": config.n_inner or 4 * config.n_embd, "attention.head_count": config.n_head,
        "attention.layer_norm_epsilon": float(config.layer_norm_epsilon),
    }  # fmt: skip


def _gated(config: Any) -> Settings:
    """Of LLaMA and its relatives."""
    heads = config.num_attention_heads
    width = head_width(config)
    found: Settings = {
        "vocab_size": config.vocab_size, "context_length": config.max_position_embeddings, "embedding_length": config.hidden_size,
        "block_count": config.num_hidden_layers, "feed_forward_length": config.intermediate_size, "attention.head_count": heads,
        "attention.head_count_kv": getattr(config, "num_key_value_heads", None) or heads,
        "attention.layer_norm_rms_epsilon": float(config.rms_norm_eps), "rope.dimension_count": width, "attention.key_length": width,
        "attention.value_length": width,
    }  # fmt: skip
    return found | _rope(config)


def _llama(config: Any) -> Settings:
    _activation(config.hidden_act, "silu", "swish")
    if getattr(config, "mlp_bias", False):
        raise EngineError("llama.cpp has no biases in LLaMA's feed-forward layers: export to safetensors")
    return _gated(config)


def _qwen(config: Any) -> Settings:
    _activation(config.hidden_act, "silu", "swish")
    if getattr(config, "use_sliding_window", False):
        raise EngineError("llama.cpp computes Qwen without windows of attention, which this model uses: export to safetensors")
    return _gated(config)


# Of so many blocks one, the last of them, sees the whole context; llama.cpp has it in its code.
_WHOLE = {"gemma2": 2, "gemma3_text": 6}


def _gemma(config: Any) -> Settings:
    every, kinds = _WHOLE.get(config.model_type), getattr(config, "layer_types", None)
    if every and kinds and any((kind == "full_attention") != ((i + 1) % every == 0) for i, kind in enumerate(kinds)):
        raise EngineError(
            f"llama.cpp lets one block in {every} of this architecture see all tokens, and this model has others: give safetensors"
        )
    # llama.cpp scales scores by the width of a head, but in the largest of each family, which it knows by their depth.
    wanted = config.hidden_size // config.num_attention_heads if config.num_hidden_layers in (46, 62) else head_width(config)
    if (scale := getattr(config, "query_pre_attn_scalar", wanted)) != wanted:
        raise EngineError(f"llama.cpp scales scores by the root of {wanted} here, and this model by that of {scale}: export to safetensors")
    found = {key: value for key, value in _gated(config).items() if key != "rope.dimension_count"}
    for key, name in (("attn_logit_softcapping", "attn_logit_softcapping"), ("final_logit_softcapping", "final_logit_softcapping")):
        if value := getattr(config, name, None):
            found[key] = float(value)
    if config.model_type != "gemma" and getattr(config, "sliding_window", None):
        found["attention.sliding_window"] = config.sliding_window
    return found


def _phi3(config: Any) -> Settings:
    _activation(config.hidden_act, "silu", "swish")
    found = _gated(config)
    width = found["rope.dimension_count"]
    found["rope.dimension_count"] = int(width * (_rope_parameters(config).get("partial_rotary_factor") or 1.0))
    found["rope.scaling.original_context_length"] = config.original_max_position_embeddings
    if getattr(config, "sliding_window", None):
        found["attention.sliding_window"] = config.sliding_window
    return found


def _neox(config: Any) -> Settings:
    _activation(config.hidden_act, "gelu", "gelu_new", "gelu_fast")
    rope = _rope_parameters(config)
    if not math.isclose(float(rope.get("rope_theta") or 10000.0), 10000.0):
        raise EngineError("llama.cpp computes GPT-NeoX with a rotary base of 10000 alone: export to safetensors")
    share = rope.get("partial_rotary_factor") or getattr(config, "rotary_pct", None) or 0.25
    return {
        "context_length": config.max_position_embeddings, "embedding_length": config.hidden_size, "block_count": config.num_hidden_layers,
        "feed_forward_length": config.intermediate_size, "rope.dimension_count": int(share * head_width(config)),
        "attention.head_count": config.num_attention_heads, "use_parallel_residual": bool(config.use_parallel_residual),
        "attention.layer_norm_epsilon": float(config.layer_norm_eps),
    }  # fmt: skip


def head_width(config: Any) -> int:
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def _rope_parameters(config: Any) -> Mapping[str, Any]:
    found = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    # Gemma 3 has one set for each kind of attention.
    return found.get("full_attention", found) if isinstance(found, Mapping) else {}


def _rope(config: Any) -> Settings:
    rope = _rope_parameters(config)
    found: Settings = {"rope.freq_base": float(rope.get("rope_theta") or getattr(config, "rope_theta", None) or 10000.0)}
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if kind in ("default", "llama3"):
        return found
    if kind not in ("linear", "yarn"):
        raise EngineError(f"llama.cpp's files have no place for rotary embeddings of type {kind!r}: export to safetensors")
    found |= {"rope.scaling.type": kind, "rope.scaling.factor": float(rope["factor"])}
    if kind == "yarn":
        found["rope.scaling.original_context_length"] = int(rope.get("original_max_position_embeddings") or config.max_position_embeddings)
    return found


def _llama3(config: Any) -> Tensor | None:
    """Factors by which LLaMA 3.1 divides its rotary frequencies, (head / 2,) float32; None where it does not."""
    rope = _rope_parameters(config)
    if (rope.get("rope_type") or rope.get("type")) != "llama3":
        return None
    width, base = head_width(config), float(rope.get("rope_theta") or 10000.0)
    low, high = float(rope["low_freq_factor"]), float(rope["high_freq_factor"])
    context, factor = float(rope["original_max_position_embeddings"]), float(rope["factor"])
    lengths = 2 * math.pi * base ** (torch.arange(0, width, 2, dtype=torch.float32) / width)
    smooth = ((context / lengths - low) / (high - low)).clamp(0, 1)
    return (1 / ((1 - smooth) / factor + smooth)).to(torch.float32)


def _rotated(config: Any, path: str) -> Tensor | None:
    """Rows of queries and keys: llama.cpp rotates neighbouring pairs, transformers the two halves of a head."""
    name = path.rpartition(".")[2]
    if name not in ("q_proj", "k_proj"):
        return None
    heads = config.num_attention_heads if name == "q_proj" else getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = head_width(config)
    return torch.arange(heads * width).reshape(heads, 2, width // 2).transpose(1, 2).flatten()


def _fused(config: Any, path: str) -> Tensor | None:
    """Rows of GPT-NeoX's fused projection: all queries, all keys, all values, in the place of three for each head."""
    if not path.endswith("query_key_value"):
        return None
    heads, width = config.num_attention_heads, head_width(config)
    return torch.arange(3 * heads * width).reshape(heads, 3, width).transpose(0, 1).flatten()


def _activation(name: str, *known: str) -> None:
    if name not in known:
        raise EngineError(f"llama.cpp computes this architecture with {known[0]} alone, and the model has {name}: export to safetensors")


def _plain(config: Any, wanted: Mapping[str, Any]) -> None:
    for key, value in wanted.items():
        if getattr(config, key, value) != value:
            raise EngineError(f"llama.cpp computes this architecture with {key} {value} alone: export to safetensors")


ARCHITECTURES: dict[str, Architecture] = {
    "gpt2": Architecture("gpt2", _gpt2),
    "llama": Architecture("llama", _llama, _rotated, rotary=_llama3),
    "mistral": Architecture("llama", _llama, _rotated),
    "qwen2": Architecture("qwen2", _qwen),
    "qwen3": Architecture("qwen3", _qwen),
    "gemma": Architecture("gemma", _gemma, raised=True),
    "gemma2": Architecture("gemma2", _gemma, raised=True),
    "gemma3_text": Architecture("gemma3", _gemma, raised=True),
    "phi3": Architecture("phi3", _phi3),
    "gpt_neox": Architecture("gptneox", _neox, _fused),
}  # fmt: skip
