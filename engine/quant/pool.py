"""Max pooling of unsigned integers, channels last: rows first, then columns, each as maxima of strided views.

torch's own pooling refuses uint8 in this layout; this form is vectorized over the channels.
"""

from __future__ import annotations

from functools import reduce

import torch
import torch.nn.functional as F
from torch import Tensor

Pair = tuple[int, ...]


def max_pool2d(x: Tensor, kernel: Pair, stride: Pair, padding: Pair, dilation: Pair, ceil_mode: bool) -> Tensor:
    """uint8 (N, C, H, W) to uint8 (N, C, H', W') as ``F.max_pool2d``; padded places never win."""
    sizes = [_length(x.shape[2 + i], kernel[i], stride[i], padding[i], dilation[i], ceil_mode) for i in (0, 1)]
    short = [max((n - 1) * s + d * (k - 1) + 1 - p - size, 0)
             for n, s, d, k, p, size in zip(sizes, stride, dilation, kernel, padding, x.shape[2:], strict=True)]  # fmt: skip
    if any(padding) or any(short):
        # Zero is the least unsigned value.
        x = F.pad(x, (padding[1], short[1], padding[0], short[0]))
    x = reduce(torch.maximum, [_every(x, 2, i * dilation[0], stride[0], sizes[0]) for i in range(kernel[0])])
    return reduce(torch.maximum, [_every(x, 3, i * dilation[1], stride[1], sizes[1]) for i in range(kernel[1])])


def _every(x: Tensor, dim: int, start: int, step: int, count: int) -> Tensor:
    cut = slice(start, start + step * (count - 1) + 1, step)
    return x[:, :, cut] if dim == 2 else x[:, :, :, cut]


def _length(size: int, kernel: int, stride: int, padding: int, dilation: int, ceil_mode: bool) -> int:
    span = size + 2 * padding - dilation * (kernel - 1) - 1
    count = (span + (stride - 1 if ceil_mode else 0)) // stride + 1
    # A window that would start in the right padding does not exist.
    return count - 1 if ceil_mode and (count - 1) * stride >= size + padding else count
