"""Reading a tensor as it lies in memory."""

from __future__ import annotations

import torch
from torch import Tensor


def as_it_lies(x: Tensor) -> Tensor:
    """The values of ``x``, 1-d, in the order of the memory: a view, unless there are gaps between them."""
    strides = x.stride()
    return x.permute(sorted(range(x.dim()), key=strides.__getitem__, reverse=True)).reshape(-1)


def content(x: Tensor) -> bytes:
    """The values of ``x`` as bytes, in the order of its dimensions, wherever it is: for hashes and comparisons."""
    return bytes(x.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
