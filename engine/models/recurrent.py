"""Decoders with recurrent layers: which of their matrices can be quantized is seen on a few tokens, before any text is read."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from engine.errors import EngineError
from engine.models.anatomy import Anatomy, anatomy

# Under what names transformers' models give their state, and take it back.
STATES = ("past_key_values", "cache_params", "state")
_TOKENS = 8


def is_recurrent(model: Any) -> bool:
    """Whether ``model`` keeps a state that does not grow with the text, in all its layers or in some."""
    return bool(getattr(model, "_is_stateful", False))


def state_of(output: Any) -> tuple[str, Any] | None:
    """What a model remembers, from its ``output``: under which argument it is given back, and it. None where it gives nothing."""
    return next(((name, held) for name in STATES if (held := getattr(output, name, None)) is not None), None)


def refuse_hidden_state(model: Any, name: str) -> None:
    """Raises EngineError for a model that keeps its state in its layers, as RecurrentGemma does: two forms of it cannot be run in
    turns, and a text cannot be continued twice."""
    if not is_recurrent(model):
        return
    rows = int(model.get_input_embeddings().weight.shape[0])
    with torch.inference_mode():
        found = state_of(model(input_ids=torch.arange(_TOKENS).remainder(rows)[None], use_cache=True))
    if found is None:
        raise EngineError(
            f"{name} is a recurrent model ({type(model).__name__}) that keeps its state in its layers, where it cannot be told from that "
            "of another text; give one that returns its state, as Mamba or RWKV, or a decoder with attention"
        )


def parts_of(model: Any) -> Anatomy:
    """The parts of ``model``. Of a recurrent one those matrices are ``bypassed`` that no layer multiplies by: a Mamba layer multiplies
    by the weight of its ``dt_proj`` itself, so that what it reads cannot be seen, and nothing can stand in its place."""
    parts = anatomy(model)
    if not is_recurrent(model):
        return parts
    # An expert may not be chosen by so few tokens.
    paths = [p.path for p in parts.matrices if p.block is not None and p.kind != "Embedding" and ".experts." not in p.path]
    entered: set[str] = set()

    def watched(path: str) -> Any:
        return model.get_submodule(path).register_forward_pre_hook(lambda module, given: entered.add(path))

    hooks = [watched(path) for path in paths]
    embedding: nn.Module = model.get_input_embeddings()
    weight: Any = embedding.weight
    try:
        with torch.inference_mode():
            model(input_ids=torch.arange(_TOKENS, device=weight.device).remainder(weight.shape[0])[None], use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return parts.without(set(paths) - entered)
