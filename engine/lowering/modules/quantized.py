"""A decoder whose matrices are integers: what was rounded, and the way back to a model in floats."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from engine.lowering.modules.coded_cache import QuantizedCache
from engine.models.anatomy import weight_of
from engine.numerics.qtensor import QTensor
from engine.numerics.quantized_matrix import QuantizedMatrix


@dataclass(frozen=True)
class QuantizedDecoder:
    """``twin`` is a transformers model in float32 whose weights are what the integers stand for, with scales folded into its
    norms and biases; ``matrices`` are the integers by module path. Paths that are no key of it stay in float32. All of it is on the
    processor: ``runtime.running`` brings a copy to another device. ``cache`` is what keys and values are kept in, None for floats."""

    twin: Any
    matrices: Mapping[str, QuantizedMatrix]
    cache: QuantizedCache | None = None

    def rest(self) -> dict[str, Tensor]:
        """The tensors of the state that are not integers: embeddings that are kept, norms, biases. Each tied tensor once."""
        known = dict(self.twin.named_parameters())
        return {name: known[name].detach() for name in rest_names(self.twin, self.matrices)}

    @property
    def bytes(self) -> int:
        """Of integers, scales and the float32 rest, without a file's header."""
        return sum(m.bytes for m in self.matrices.values()) + sum(t.numel() * t.element_size() for t in self.rest().values())


def rest_names(model: Any, matrices: Iterable[str]) -> list[str]:
    """The parameters of ``model`` that are not the weights of ``matrices`` (module paths), each tied one once."""
    paths = tuple(matrices)
    known = {f"{path}.weight" for path in paths}
    held = {id(model.get_submodule(path).weight) for path in paths}
    return [name for name, parameter in model.named_parameters() if name not in known and id(parameter) not in held]


@torch.no_grad()
def apply(model: nn.Module, weights: Mapping[str, QTensor]) -> None:
    """Write what ``weights`` stand for into ``model``, by module path, in place."""
    for path, weight in weights.items():
        weight_of(model.get_submodule(path)).copy_(weight.dequantize())


def duplicate(model: Any) -> Any:
    """A copy of a transformers model of its own memory; what was tied stays tied."""
    return copy.deepcopy(model)
