"""Training-time changes to a batch of images, drawn from one generator and done for the whole batch at once."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad as pad_borders


def crop_and_flip(images: Tensor, pad: int, flip: bool, generator: torch.Generator) -> Tensor:
    """Shift every image by up to ``pad`` pixels each way, black where it moved off, and mirror half of them if ``flip``.

    ``images`` is uint8 (N, C, H, W) on any device; the result has the same shape, type and device. ``generator`` lives
    on the CPU, so the same seed gives the same batch on every device.
    """
    count, channels, height, width = images.shape
    top = torch.randint(0, 2 * pad + 1, (count, 1), generator=generator)
    left = torch.randint(0, 2 * pad + 1, (count, 1), generator=generator)
    columns = torch.arange(width).expand(count, width)
    if flip:
        mirrored = torch.rand(count, 1, generator=generator) < 0.5
        columns = torch.where(mirrored, width - 1 - columns, columns)
    rows = (torch.arange(height) + top).to(images.device)
    columns = (columns + left).to(images.device)

    image = torch.arange(count, device=images.device)[:, None, None, None]
    channel = torch.arange(channels, device=images.device)[None, :, None, None]
    return pad_borders(images, (pad, pad, pad, pad))[image, channel, rows[:, None, :, None], columns[:, None, None, :]]
