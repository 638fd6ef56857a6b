"""The memory layout that convolutions are fast in, and results that may be changed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

M = TypeVar("M", bound=nn.Module)
R = TypeVar("R")


def channels_last(module: M, device: str | torch.device | None = None) -> M:
    """``module`` itself, on ``device`` where that is given, its tensors of four dimensions channels last.

    ``Module.to`` would take tensors of five for those of volumes and refuses them.
    """
    if device is not None:
        module.to(device)
    for part in module.modules():
        for tensor in (*part.parameters(recurse=False), *part.buffers(recurse=False)):
            if tensor.dim() == 4:
                tensor.data = tensor.data.contiguous(memory_format=torch.channels_last)
    return module


def laid_out(inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Inputs in order, those of four dimensions channels last."""
    return tuple(x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x for x in inputs)


def changeable(results: R) -> R:
    """A tensor, or a tuple of them, as what the caller may change in place and take gradients beyond: torch allows neither of what was
    computed in inference mode, once that mode is left."""
    if torch.is_inference_mode_enabled():
        return results
    return tree_map(lambda value: value.clone() if isinstance(value, Tensor) and value.is_inference() else value, results)  # type: ignore[no-any-return]
