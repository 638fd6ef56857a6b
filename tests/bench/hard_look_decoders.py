"""Tiny random decoders of every family that transformers has, each with a random configuration, from their folder to the verdict."""

from __future__ import annotations

import inspect
import random
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import driving
import tiny_language
import torch

import engine
from engine.errors import EngineError, UsageError
from engine.events.cancellation import StopToken
from engine.recipe.recipe import Recipe
from engine.runs import pipeline

PRESETS = ("default", "w8a8", "w8a8-static", "w8", "w4", "w4", "w4a8", "w3")
_MOST = 4_000_000  # Parameters: what does not get smaller by the sizes below is passed over.
# Least SQNR in dB of the logits, by the bits of the weights: most tiny models with random weights have 12 to 30.
_LEAST = {"8": 8.0, "4": 2.0, "3": 0.0}


@cache
def families() -> tuple[str, ...]:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as known

    return tuple(sorted(known))


def sizes_of(r: random.Random) -> dict[str, Any]:
    """A value for each name that a configuration may have for one of its sizes."""
    heads, head = r.choice([2, 4]), r.choice([8, 16])
    width, layers, inner, keys = heads * head, r.choice([2, 3]), r.choice([32, 48, 80]), r.choice([1, 2, heads])
    same: list[tuple[Any, tuple[str, ...]]] = [
        (300, ("vocab_size", "vocab_size_per_layer_input", "task_type_vocab_size")),
        (width, ("hidden_size", "d_model", "n_embd", "embedding_size", "dim", "d_embed", "word_embed_proj_dim", "input_embedding_size",
                "output_embedding_size", "lru_width", "backbone_hidden_size", "embedding_dim")),
        (layers, ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers", "encoder_layers", "num_decoder_layers",
                 "num_encoder_layers")),
        (heads, ("num_attention_heads", "n_head", "n_heads", "num_heads", "decoder_attention_heads", "encoder_attention_heads",
                "num_decoder_attention_heads", "num_encoder_attention_heads", "linear_num_heads", "swa_num_attention_heads")),
        (keys, ("num_key_value_heads", "num_kv_heads", "swa_num_key_value_heads")),
        (inner, ("intermediate_size", "ffn_dim", "decoder_ffn_dim", "encoder_ffn_dim", "n_inner", "dff", "dim_ff", "ffn_hidden_size",
                "intermediate_size_mlp", "dense_intermediate_size", "d_inner", "feed_forward_size", "shared_intermediate_size")),
        (24, ("moe_intermediate_size", "shared_expert_intermediate_size", "shared_experts_intermediate_size", "expert_ffn_hidden_size",
             "moe_shared_expert_intermediate_size")),
        (head, ("head_dim", "dim_head", "global_head_dim", "kv_channels", "swa_head_dim", "attention_head_size", "linear_head_dim")),
        (64, ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "context_length")),
        (4, ("num_experts", "n_routed_experts", "num_local_experts", "moe_num_experts", "mamba_d_conv", "index_n_heads",
             "linear_num_value_heads")),
        (2, ("num_experts_per_tok", "moe_topk", "moe_k", "mamba_expand", "expand", "linear_num_key_heads", "hc_mult", "mamba_n_groups")),
        (1, ("n_group", "topk_group", "n_shared_experts", "num_shared_experts", "moe_num_shared_experts", "first_k_dense_replace",
            "decoder_sparse_step", "mamba_n_groups", "n_groups", "num_dense_layers", "H_cycles", "L_cycles", "num_nextn_predict_layers")),
        (8, ("kv_lora_rank", "q_lora_rank", "qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim", "rotary_dim", "state_size",
             "mamba_d_state",
            "ssm_state_size", "index_head_dim", "index_topk", "hidden_size_per_layer_input", "laurel_rank", "linear_key_head_dim",
            "linear_value_head_dim", "o_lora_rank", "gated_norm_rank", "mamba_head_dim", "mamba_d_head", "time_step_rank",
             "query_pre_attn_scalar")),
        (16, ("sliding_window", "sliding_window_size", "attention_window_size", "chunk_size", "mamba_chunk_size", "attention_chunk_size",
             "block_size", "local_attention", "window_size", "local_attention_window_len")),
        (2 * width // 8, ("mamba_n_heads", "mamba_num_heads", "n_mamba_heads")),
    ]  # fmt: skip
    found = {name: value for value, names in same for name in names}
    return {**found, "num_kv_shared_layers": 0, "tie_word_embeddings": r.random() < 0.5, "attention_bias": r.random() < 0.3,
            "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 0, "initializer_range": r.choice([0.02, 0.1, 0.2])}  # fmt: skip


def configuration(family: str, r: random.Random) -> Any:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    kind = CONFIG_MAPPING[family]
    known = inspect.signature(kind.__init__).parameters
    always = {"bos_token_id", "eos_token_id", "pad_token_id"}
    return kind(**{name: value for name, value in sizes_of(r).items() if name in known or name in always})


def built(family: str, seed: int) -> tuple[Any, str]:
    """The model, or None and why there is none."""
    import transformers

    try:
        config = configuration(family, random.Random(seed))
        make = transformers.AutoModelForCausalLM.from_config
        with torch.device("meta"):
            size = sum(p.numel() for p in make(config).parameters())
        if size > _MOST:
            return None, f"{size:,} parameters"
        torch.manual_seed(seed)
        model = make(config).float().eval()
        with torch.no_grad():
            model(input_ids=torch.arange(2, 22)[None])
            for parameter in model.parameters():
                if parameter.dim() == 1:
                    parameter.add_(torch.randn_like(parameter) * 0.05)
    except Exception as error:
        return None, f"{type(error).__name__}: {str(error).splitlines()[0][:120] if str(error) else ''}"
    return model, ""


def look(seed: int) -> tuple[str, str]:
    """The outcome of a case, ``fine`` or what kind of find it is, and what is to be said of it."""
    family, r = families()[seed % len(families())], random.Random(seed)
    model, why = built(family, seed)
    if model is None:
        return "not built", f"{family}: {why}"
    preset = r.choice(PRESETS)
    with tempfile.TemporaryDirectory() as place:
        folder, text = Path(place) / "tiny", Path(place) / "text.txt"
        try:
            tiny_language.write_folder(folder, model)
        except Exception as error:
            return "not built", f"{family}: it cannot be saved ({type(error).__name__})"
        text.write_text(tiny_language.sentences(400, seed))
        data = {"name": str(text), "calibration": 4, "limit": 64, "stride": 32, "context": 32}
        about = f"{family} {preset}, seed {seed}"
        for exports in (("onnx",), ()):
            recipe = Recipe.make(model=str(folder), data=data, preset=preset, qat={"mode": "never"}, export=exports, seed=seed)
            stop, out = StopToken(), Path(place) / f"run{len(exports)}"
            with driving.untimed():
                outcome = driving.consume(pipeline.run(recipe, out, stop), stop)
            if not (exports and isinstance(outcome.error, UsageError)):
                break
        if outcome.error is not None:
            text_of, kept = str(outcome.error), out / "traceback.txt"
            refused = isinstance(outcome.error, EngineError) and "the traceback is in" not in text_of
            return ("refused" if refused else "error"), f"{about}: {text_of} {kept.read_text()[-1500:] if kept.exists() else ''}"
        return judged(outcome.data, out, about)


def judged(data: dict[str, Any], folder: Path, about: str) -> tuple[str, str]:
    noise, value, before = data["ptq"]["error"]["sqnr_db"], data["ptq"]["value"], data["baseline"]["value"]
    about = f"{about}: {noise:.1f} dB, perplexity {before:.2f} to {value:.2f}"
    bits = "8" if "w8" in about or "default" in about else "3" if "w3" in about else "4"
    if noise < _LEAST[bits]:
        worst = sorted((x["sqnr_db"], x["name"]) for x in data["layers"] if x.get("sqnr_db") is not None)[:3]
        return "noisy", f"{about}; {worst}"
    for entry in data["exports"]:
        if entry.get("parity") is None or entry.get("differs") or not entry["verified"] or entry.get("alarm"):
            return "export differs", f"{about}: { {key: entry.get(key) for key in ('format', 'reason', 'alarm', 'parity')} }"
    ids = torch.randint(2, 290, (2, 12), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        quantized: Any = engine.load_quantized(folder)
        whole = _logits(quantized(ids))
        alone = torch.cat([_logits(quantized(row[None])) for row in ids])
        first = _logits(quantized(ids[:, :7]))
    if not whole.isfinite().all():
        return "not finite", about
    for what, got, wanted in (("batch", alone, whole), ("length", first, whole[:, :7])):
        apart = (got - wanted).abs().max() / wanted.abs().max()
        # A token's logits depend neither on its neighbours in the batch nor on what follows it.
        if apart > 0.05:
            return f"{what} differs", f"{about}: up to {apart:.2f} of the largest logit"
    return "fine", about


def _logits(given: Any) -> torch.Tensor:
    return getattr(given, "logits", given)
