"""Whether a decoder with recurrent layers can be quantized as others are: seen on a few tokens, before any text is read."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from engine.errors import EngineError
from engine.models.anatomy import anatomy

_TOKENS = 8


def refuse_recurrent(model: Any, name: str) -> None:
    """Raises EngineError for a model that keeps a state in place of keys and values, as Mamba and RWKV do, and for one whose recurrent
    layers multiply by weights past the layers that hold them: what such a layer reads cannot be seen."""
    if getattr(model, "_is_stateful", False) and (why := _lack(model)):
        raise EngineError(f"{name} is a recurrent model ({type(model).__name__}): {why}; give a decoder with attention, as GPT-2 or LLaMA")


def _lack(model: Any) -> str:
    blocks = (part.path for part in anatomy(model).matrices if part.block is not None and part.kind != "Embedding")
    # An expert may not be chosen by so few tokens.
    missed = {path: model.get_submodule(path) for path in blocks if ".experts." not in path}

    def enters(module: nn.Module, given: object) -> None:
        for path in [path for path, held in missed.items() if held is module]:
            del missed[path]

    hooks = [module.register_forward_pre_hook(enters) for module in missed.values()]
    rows = int(model.get_input_embeddings().weight.shape[0])
    try:
        with torch.inference_mode():
            out = model(input_ids=torch.arange(_TOKENS).remainder(rows)[None], use_cache=True)
    finally:
        for hook in hooks:
            hook.remove()
    if getattr(out, "past_key_values", None) is None:
        return "it has no cache of keys and values to be timed with"
    return f"what {next(iter(missed))} reads cannot be seen for calibration" if missed else ""
