"""Rounding offsets and clips that are learned together by the signs of their gradients: what AutoRound learns of one matrix.

Cheng et al. 2023, "Optimize Weight Rounding via Signed Gradient Descent" (arXiv:2309.05516, section 3): a weight w becomes
s (round(w / s + v) - z), with an offset v of at most half a step for each weight and two parts in 0..1 for each group, by which its
minimum and maximum are multiplied before s and z follow from them. Rounding passes gradients on as they are.

On grids whose values are not evenly spaced v counts the space between the two values on either side of w.
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor, nn

from engine.numerics.formats import NumberFormat
from engine.numerics.qtensor import QTensor
from engine.numerics.scheme import WeightScheme, in_groups
from engine.numerics.weights import WeightQParams, qparams_between

# How far a group's ends may be drawn in.
LEAST_CLIP = 0.3


class SignRounding(nn.Module):
    """``weight`` float32 (out, in) on the grid of ``scheme``; ``forward`` gives what it stands for, differentiable in ``offset`` (out,
    groups, size) and in ``low`` and ``high`` (out, groups)."""

    def __init__(self, weight: Tensor, scheme: WeightScheme) -> None:
        super().__init__()
        self._inputs, self._scheme = weight.shape[1], scheme
        self._weight = in_groups(weight.detach(), scheme)
        self._ends = (self._weight.amin(2).clamp_max(0), self._weight.amax(2).clamp_min(0))
        self.offset = nn.Parameter(torch.zeros_like(self._weight))
        self.low = nn.Parameter(torch.ones_like(self._ends[0]))
        self.high = nn.Parameter(torch.ones_like(self._ends[1]))
        self._space = spacing(self._weight / self._grid().divisor[..., None], scheme.format)

    def _between(self) -> tuple[Tensor, Tensor]:
        return self._ends[0] * self.low, self._ends[1] * self.high

    @torch.no_grad()
    def _grid(self) -> WeightQParams:
        low, high = self._between()
        return qparams_between(low.detach(), high.detach(), self._scheme)

    def forward(self) -> Tensor:
        form, grid = self._scheme.format, self._grid()
        low, high = self._between()
        held, zeros = grid.divisor, grid.zeros
        # What is stored of the step counts; how it moves with the ends is known of the step before it was rounded.
        raw = (torch.maximum(high, -low) if self._scheme.symmetric else high - low) / form.high * torch.where(held < 0, -1.0, 1.0)
        step = (raw + (held - raw).detach())[..., None]
        zero = torch.zeros((), device=held.device) if zeros is None else zeros[..., None]
        moved = self._weight / step + self.offset * self._space
        with torch.no_grad():
            rounded = form.round(moved, zero if form.moved else None)
            inside = (moved + zero >= form.low) & (moved + zero <= form.high)
        passed = torch.where(inside, moved + zero, rounded)
        return self._flat((passed + (rounded - passed).detach() - zero) * step)

    def _flat(self, grouped: Tensor) -> Tensor:
        return grouped.flatten(1)[:, : self._inputs]

    @torch.no_grad()
    def bound(self) -> None:
        """Bring the parameters back to where they may be."""
        self.offset.clamp_(-0.5, 0.5)
        self.low.clamp_(LEAST_CLIP, 1.0)
        self.high.clamp_(LEAST_CLIP, 1.0)

    @torch.no_grad()
    def rounded(self) -> QTensor:
        """The codes and scales that ``forward`` computes with."""
        form, grid = self._scheme.format, self._grid()
        zeros = None if grid.zeros is None else grid.zeros[..., None]
        moved = self._weight / grid.divisor[..., None] + self.offset * self._space
        return grid.with_codes(form.encode(self._flat(form.round(moved, zeros if form.moved else None)).contiguous()))


def spacing(values: Tensor, form: NumberFormat) -> Tensor:
    """The distance of the two values of ``form`` on either side of each of ``values``, in units of the step; 1 for integers."""
    levels = sorted({level for level in form.levels if not math.isnan(level)})
    if not levels or all(after - before == 1 for before, after in pairwise(levels)):
        return torch.ones_like(values)
    ends = torch.tensor(levels, dtype=values.dtype, device=values.device)
    place = torch.bucketize(values, ends).clamp(1, len(levels) - 1)
    return ends[place] - ends[place - 1]


def sign_step(modules: list[SignRounding], rate: float) -> None:
    """Move each parameter by ``rate`` against the sign of its gradient, and forget the gradients."""
    with torch.no_grad():
        for module in modules:
            for parameter in module.parameters():
                if parameter.grad is not None:
                    parameter.sub_(parameter.grad.sign(), alpha=rate)
                    parameter.grad = None
            module.bound()
