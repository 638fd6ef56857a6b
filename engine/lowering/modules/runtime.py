"""A quantized decoder as a model that runs: each matrix on the kernel that this machine has for it."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from engine.kernels.matrix.base import asked_of
from engine.kernels.matrix.choose import Choice, choose
from engine.kernels.matrix.computed import Computed
from engine.kernels.matrix.on_int8 import INT8
from engine.kernels.matrix.rows import PackedEmbedding
from engine.kernels.probe import Machine
from engine.lowering.modules.fused_activations import fuse_activations
from engine.lowering.modules.quantized import QuantizedDecoder


class Placement(NamedTuple):
    """What computes a matrix, why (or None), and whether neither memory nor time are less than float32's."""

    label: str
    reason: str | None
    storage_only: bool


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
        setattr(model.get_submodule(parent), name, module)
    fuse_activations(model)
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
    return copy.deepcopy(model, memo).requires_grad_(False)
