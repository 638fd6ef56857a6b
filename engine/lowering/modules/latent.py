"""Low-bit weights that learn: what is simulated is what is stored, and gradients pass the rounding straight through."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from engine.numerics.qtensor import QTensor
from engine.numerics.scheme import in_groups
from engine.numerics.weights import LARGEST, SMALLEST, WeightQParams

# How far beyond the outermost integers a place may go: further out it would take long to come back.
MARGIN = 0.49


class _Rounded(torch.autograd.Function):
    """``scale * (round(place) - zero)`` with the scale of each group multiplied by ``exp(growth)`` and rounded as it is stored."""

    @staticmethod
    def forward(ctx: Any, place: Tensor, growth: Tensor, start: QTensor) -> Tensor:
        rounded = _stored(place, growth, start)
        weight = rounded.dequantize()
        ctx.save_for_backward(weight, WeightQParams.of(rounded).columns(weight.shape[1])[0])
        ctx.scheme = start.scheme
        return weight

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        (grad,) = grads
        weight, step = ctx.saved_tensors
        return grad * step, in_groups(grad * weight, ctx.scheme).sum(2), None


class Latent(nn.Module):
    """A ``QTensor`` in training, which begins as ``start`` to the bit.

    ``place`` float32 (out, in) is where each weight lies between the integers of its grid; it is rounded in the forward pass and
    gets the gradient of what it is rounded to (straight-through: Bengio et al. 2013, arXiv:1308.3432). ``growth`` float32
    (out, groups) is the logarithm by which each scale has grown, so that one learning rate serves scales of all sizes (Jain
    et al. 2019, arXiv:1903.08066); the integers held, its gradient is that of the learned step size (Esser et al. 2020,
    arXiv:1902.08153). Zero points stay. In units of steps one learning rate serves the places of all layers, too.

    A place begins in the middle: gradients have to pull the same way for some time to bring a weight to the next integer. From the
    edge noise would do, and undo what GPTQ has made good.
    """

    def __init__(self, start: QTensor) -> None:
        super().__init__()
        self._start = start
        self.place = nn.Parameter(start.format.decode(start.codes))
        self.growth = nn.Parameter(torch.zeros_like(WeightQParams.of(start).step))

    def forward(self) -> Tensor:
        """The weight (out, in), float32, that ``stored`` stands for, differentiable."""
        found: Tensor = _Rounded.apply(self.place, self.growth, self._start)
        return found

    @torch.no_grad()
    def stored(self) -> QTensor:
        """The integers and scales that ``forward`` computes with."""
        return _stored(self.place.detach(), self.growth.detach(), self._start)

    @torch.no_grad()
    def bound(self) -> None:
        """Bring places that have left the grid back to its edge."""
        self.place.clamp_(self._start.format.low - MARGIN, self._start.format.high + MARGIN)


def _stored(place: Tensor, growth: Tensor, start: QTensor) -> QTensor:
    wanted = WeightQParams.of(start).step * growth.exp()
    # A step that is no number any more shows in the loss, which the training looks at.
    zeros = WeightQParams.of(start).zeros if start.format.shifted else None
    held = wanted.nan_to_num_(nan=LARGEST)
    # Steps of blocks may be negative, and zero.
    held = held.clamp_(SMALLEST, LARGEST) if start.format.layout is None else held.clamp_(-LARGEST, LARGEST)
    grid = WeightQParams.stored(start.scheme, held, zeros)
    return grid.regridded(replace(start, codes=start.format.encode(start.format.round(place))))
