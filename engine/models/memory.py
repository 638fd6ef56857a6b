"""The memory layout that convolutions are fast in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

M = TypeVar("M", bound=nn.Module)


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
