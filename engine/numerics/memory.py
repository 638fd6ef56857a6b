"""Reading a tensor as it lies in memory."""

from __future__ import annotations

from torch import Tensor


def as_it_lies(x: Tensor) -> Tensor:
    """The values of ``x``, 1-d, in the order of the memory: a view, unless there are gaps between them."""
    strides = x.stride()
    return x.permute(sorted(range(x.dim()), key=strides.__getitem__, reverse=True)).reshape(-1)
