"""A quantized decoder as a model that runs: each matrix on the kernel that this machine has for it."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from engine.errors import EngineError
from engine.kernels.matrix.base import asked_of
from engine.kernels.matrix.choose import Choice, choose
from engine.kernels.matrix.computed import Computed
from engine.kernels.matrix.on_int8 import INT8
from engine.kernels.matrix.rows import PackedEmbedding
from engine.kernels.probe import Machine
from engine.lowering.modules.coded_cache import attach
from engine.lowering.modules.fused_activations import fuse_activations
from engine.lowering.modules.quantized import QuantizedDecoder


class Placement(NamedTuple):
    """What computes a matrix, why (or None), and whether neither memory nor time are less than float32's."""

    label: str
    reason: str | None
    storage_only: bool


class HeldElsewhere:
    """Stands for the float32 weight of a layer that holds integers: models ask it for its place, type and shape. Raises EngineError
    where one computes with it."""

    dtype = torch.float32

    def __init__(self, path: str, shape: torch.Size, device: str) -> None:
        self.path, self.shape, self.device = path, shape, torch.device(device)

    def size(self, dim: int | None = None) -> Any:
        return self.shape if dim is None else self.shape[dim]

    def dim(self) -> int:
        return len(self.shape)

    def __getattr__(self, name: str) -> Any:
        # What looks for an optional attribute goes on without it.
        if name.startswith("__"):
            raise AttributeError(name)
        raise self._refusal()

    def __getitem__(self, at: object) -> Any:
        raise self._refusal()

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = [*args, *(kwargs or {}).values()]
        raise next(value for value in given if isinstance(value, cls))._refusal()

    def _refusal(self) -> EngineError:
        path = self.__dict__.get("path", "a layer")
        return EngineError(f"the model computes with the weight of {path} past that layer: keep {path} in fp32 with a rule of the recipe")


def choices(decoder: QuantizedDecoder, machine: Machine) -> dict[str, Choice]:
    """The kernel of each matrix by its path."""
    return {path: choose(asked_of(matrix, decoder.twin.get_submodule(path)), machine) for path, matrix in decoder.matrices.items()}


def as_run(decoder: QuantizedDecoder, machine: Machine) -> dict[str, Tensor]:
    """The weights that ``running`` computes with, float32 (out, in) by path: they differ from the decoder's where a kernel rounds
    them or their scales again."""
    return {path: choice.kernel.computed(decoder.matrices[path].weight) for path, choice in choices(decoder, machine).items()}


def running(decoder: QuantizedDecoder, machine: Machine) -> tuple[Any, dict[str, Placement]]:
    """A transformers model on integer kernels, and what computes each matrix. It is a copy on the machine's device, in eval mode, for
    inference alone: of the twin's float32 weights it holds only those that it computes with."""
    found = choices(decoder, machine)
    modules = {
        path: built
        for path, choice in found.items()
        if (built := choice.kernel.build(decoder.matrices[path], _bias(decoder.twin.get_submodule(path)), machine)) is not None
    }
    _share(decoder, modules)
    model = _without(decoder.twin, modules).to(machine.device)
    for path, module in modules.items():
        parent, _, name = path.rpartition(".")
        object.__setattr__(module, "weight", HeldElsewhere(path, decoder.twin.get_submodule(path).weight.shape, machine.device))
        setattr(model.get_submodule(parent), name, module)
    fuse_activations(model)
    if decoder.cache is not None:
        attach(model, decoder.cache)
    return model.eval(), {path: Placement(choice.label, choice.reason, choice.storage_only) for path, choice in found.items()}


def _share(decoder: QuantizedDecoder, modules: Mapping[str, nn.Module]) -> None:
    """An embedding of int8 reads its rows from the head it is tied to, where that holds the same integers."""
    for path, matrix in decoder.matrices.items():
        head, first = modules.get(path), modules.get(matrix.tied or "")
        if isinstance(head, Computed) and isinstance(first, PackedEmbedding) and matrix.weight.scheme == INT8:
            look = head.rows(matrix.weight.codes)
            if look is not None:
                first.share(look)


def _bias(module: nn.Module) -> Tensor | None:
    held = getattr(module, "bias", None)
    return None if held is None else held.detach().clone()


def _without(model: Any, replaced: Mapping[str, nn.Module]) -> Any:
    """A copy that has no memory for weights all of whose holders are replaced."""
    holders: dict[int, set[str]] = {}
    for path, module in model.named_modules():
        for parameter in module.parameters(recurse=False):
            holders.setdefault(id(parameter), set()).add(path)
    nothing = nn.Parameter(torch.empty(0), requires_grad=False)
    memo: dict[int, Any] = {number: nothing for number, paths in holders.items() if paths <= replaced.keys()}
    # Of a decoder that is walked block by block the other blocks are not read.
    memo |= {id(parameter): nothing for parameter in model.parameters() if parameter.is_meta}
    return copy.deepcopy(model, memo).requires_grad_(False)
