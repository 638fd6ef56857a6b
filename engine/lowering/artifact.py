"""``model.safetensors`` of any lowering, and the way back to a running model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from torch import nn

from engine.lowering.files import file_of, is_decoder

if TYPE_CHECKING:
    from engine.lowering.graph.runtime import QuantizedModel
    from engine.lowering.modules.loaded import LoadedDecoder


def load_quantized(directory: str | Path, model: nn.Module | None = None) -> QuantizedModel | LoadedDecoder:
    """The quantized model of a finished run: of images as ``load_network`` gives it, of language as a ``LoadedDecoder``, which takes
    token ids (N, T) and returns logits (N, T, vocabulary). Raises EngineError."""
    path = file_of(directory)
    if not is_decoder(path):
        from engine.lowering.graph.artifact import load_network

        return load_network(path, model)
    # Language models bring transformers, which others do without.
    from engine.lowering.modules.loaded import load

    return load(path)
