"""``model.safetensors`` of any lowering, and the way back to a running model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from torch import nn

from engine.lowering.files import file_of, lowering_of_file

if TYPE_CHECKING:
    from engine.lowering.graph.runtime import QuantizedModel
    from engine.lowering.islands.model import IslandsModel
    from engine.lowering.modules.loaded import LoadedDecoder


def load_quantized(directory: str | Path, model: nn.Module | None = None) -> QuantizedModel | IslandsModel | LoadedDecoder:
    """The quantized model of a finished run: of images as ``load_network`` gives it, of language as a ``LoadedDecoder``, which takes
    token ids (N, T) and returns logits (N, T, vocabulary). Where the model's forward runs as the Python that it is, between islands of
    integers, ``model`` is needed: it gives the code, and the file all numbers. Raises EngineError."""
    path = file_of(directory)
    lowering = lowering_of_file(path)
    if lowering == "graph":
        from engine.lowering.graph.artifact import load_network

        return load_network(path, model)
    if lowering == "islands":
        from engine.lowering.islands.artifact import load as load_islands

        return load_islands(path, model)
    # Language models bring transformers, which others do without.
    from engine.lowering.modules.loaded import load

    return load(path)
