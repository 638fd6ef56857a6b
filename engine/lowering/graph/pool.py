"""Max pooling of unsigned integers, channels last: rows first, then columns, each as maxima of strided views.

torch's own pooling refuses uint8 in this layout; this form is vectorized over the channels.
"""

from __future__ import annotations

from functools import lru_cache, reduce

import torch
import torch.nn.functional as F
from torch import Tensor

Pair = tuple[int, ...]


def max_pool2d(x: Tensor, kernel: Pair, stride: Pair, padding: Pair, dilation: Pair, ceil_mode: bool) -> Tensor:
    """uint8 (N, C, H, W) to uint8 (N, C, H', W') as ``F.max_pool2d``; padded places never win."""
    pads, rows, columns = _cuts(x.shape[2], x.shape[3], kernel, stride, padding, dilation, ceil_mode)
    if pads is not None:
        # Zero is the least unsigned value.
        x = F.pad(x, pads)
    x = reduce(torch.maximum, [x[:, :, cut] for cut in rows])
    return reduce(torch.maximum, [x[:, :, :, cut] for cut in columns])


@lru_cache(maxsize=256)
def _cuts(
    height: int, width: int, kernel: Pair, stride: Pair, padding: Pair, dilation: Pair, ceil_mode: bool
) -> tuple[tuple[int, ...] | None, tuple[slice, ...], tuple[slice, ...]]:
    """Padding, and for each place in the window the rows and the columns it meets."""
    cuts, pads = [], []
    for size, k, s, p, d in zip((height, width), kernel, stride, padding, dilation, strict=True):
        count = _length(size, k, s, p, d, ceil_mode)
        short = max((count - 1) * s + d * (k - 1) + 1 - p - size, 0)
        cuts.append(tuple(slice(i * d, i * d + s * (count - 1) + 1, s) for i in range(k)))
        pads.append((p, short))
    (top, bottom), (left, right) = pads
    return ((left, right, top, bottom) if any((*pads[0], *pads[1])) else None), cuts[0], cuts[1]


def _length(size: int, kernel: int, stride: int, padding: int, dilation: int, ceil_mode: bool) -> int:
    span = size + 2 * padding - dilation * (kernel - 1) - 1
    count = (span + (stride - 1 if ceil_mode else 0)) // stride + 1
    # A window that would start in the right padding does not exist.
    return count - 1 if ceil_mode and (count - 1) * stride >= size + padding else count
