"""A GGUF file in the public libraries: transformers builds the model from its metadata, ``gguf`` dequantizes its blocks."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from engine.errors import EngineError, one_line
from engine.export.gguf import tensor_names
from engine.export.gguf_architectures import architecture
from engine.lowering.modules.header import config_dict
from engine.lowering.modules.skeleton import empty
from engine.models import gguf_file
from engine.models.anatomy import weight_of
from engine.models.transformers_load import quiet


def opened(path: Path, config: Any) -> tuple[Any, str, str]:
    """The model of the file in float32, the runtime's label, and a note where transformers could not build it from the file alone, as a
    person's program would; then the tensors are put into the model of ``config``. Raises EngineError in one line."""
    labels = {name: f"{name} {importlib.metadata.version(name)}" for name in ("transformers", "gguf")}
    try:
        return gguf_file.read(path).model, labels["transformers"], ""
    except EngineError as error:
        reason = one_line(error, 160)
    try:
        with quiet():
            return _by_names(path, config), labels["gguf"], f"transformers does not read it ({reason}): gguf dequantized the tensors"
    except EngineError:
        raise
    except Exception as error:
        raise EngineError(f"{path} cannot be read back ({one_line(error, 160)}): export it again") from error


def tensors_of(path: Path) -> dict[str, Tensor]:
    """Every tensor of the file dequantized, float32, by name. Raises EngineError in one line for a file that is damaged, of another
    byte order, or of types that ``gguf`` does not know."""
    from gguf import GGUFReader, dequantize

    try:
        return {
            tensor.name: torch.from_numpy(dequantize(tensor.data, tensor.tensor_type).copy()).reshape([*map(int, reversed(tensor.shape))])
            for tensor in GGUFReader(path).tensors
        }
    except Exception as error:
        raise EngineError(f"{path} is no whole GGUF file that gguf reads ({one_line(error, 160)}): copy it again") from error


@torch.no_grad()
def _by_names(path: Path, config: Any) -> Any:
    """The model with the file's tensors at their places, rows in the model's own order again."""
    found, model, given = architecture(config), empty(config_dict(config)), tensors_of(path)
    for name, (place, parameter) in tensor_names(model, found).items():
        data, order = given.pop(name), found.rows(config, place)
        data = data if order is None else data[torch.argsort(order)]
        data = data - 1 if found.raised and name.endswith("norm.weight") else data
        (weight_of(model.get_submodule(place)) if parameter.dim() == 2 else parameter).copy_(data)
    if strange := set(given) - {"rope_freqs.weight"}:
        raise EngineError(f"{path} holds {min(strange)}, which is no part of the model: export it again")
    return model
