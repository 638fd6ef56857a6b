"""Rounding that is learned: each weight goes to one of two neighbours on the grid, whichever leaves the least error together.

AdaRound (Nagel et al. 2020, arXiv:2004.10568, section 3.3): a weight is relaxed to its lower neighbour and a part h(V) in 0..1 of the
way to the upper one, with h a stretched sigmoid; a penalty 1 - |2h - 1|^β, whose β falls, drives each part to 0 or 1. Unlike there,
the neighbours are those on either side of an earlier rounding, GPTQ's as a rule: that one and the next towards the float weight. On
a ResNet-20 with weights of 3 bits this gave 0.5 to 3 dB over rounding the float weights up and down.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor, nn

from engine.algorithms.gptq import gptq
from engine.algorithms.gram import output_error
from engine.numerics.formats import NumberFormat
from engine.numerics.qtensor import QTensor
from engine.numerics.weights import WeightQParams

# The ends of the stretched sigmoid (section 3.3, equation 23).
STRETCH, BELOW = 1.2, -0.1
# The exponent of the penalty at its beginning and end, and the part of the steps without a penalty.
SOFT, SHARP, WARM = 20.0, 2.0, 0.2
# The penalty's weight against the error of the start, at the beginning, and how often it is that at the end.
STRENGTH, RISE = 0.03, 100.0
# How far each part begins from the float weight towards the earlier rounding.
LEAN = 0.9
_EDGE = 1e-3


class SoftRounding(nn.Module):
    """Weights (out, in), each between two values of the grid of ``start`` (out, in); ``forward`` gives them, differentiable in ``v``
    and, where ``scaled``, in ``log_scale`` (out, 1), the logarithm of what each output's scale is multiplied by."""

    low: Tensor
    gap: Tensor
    step: Tensor
    zero: Tensor

    def __init__(self, weight: Tensor, start: QTensor, scaled: bool = False) -> None:
        super().__init__()
        self._grid, self._form = WeightQParams.of(start), start.format
        step, zero = (part.to(weight.device) for part in self._grid.columns(weight.shape[1]))
        at, exact = self._form.decode(start.codes).flatten(1).to(weight.device), weight / step + zero
        other = neighbour(at, exact >= at, self._form)
        low, gap = torch.minimum(at, other), (at - other).abs()
        part = ((exact - low) / gap.clamp_min(1e-12)).clamp(0, 1)
        part = part + LEAN * ((at > low).to(part.dtype) - part)
        for name, value in (("low", low), ("gap", gap), ("step", step), ("zero", zero)):
            self.register_buffer(name, value, persistent=False)
        self.v = nn.Parameter(torch.logit((part.clamp(_EDGE, 1 - _EDGE) - BELOW) / STRETCH))
        self.log_scale = nn.Parameter(torch.zeros(len(weight), 1, device=weight.device)) if scaled else None

    def parts(self) -> Tensor:
        """h(V), 0..1 of the way from the lower to the upper value."""
        return torch.sigmoid(self.v).mul(STRETCH).add(BELOW).clamp(0, 1)

    def forward(self) -> Tensor:
        found = (self.low - self.zero + self.parts() * self.gap) * self.step
        return found if self.log_scale is None else found * self.log_scale.exp()

    def penalty(self, step: int, steps: int) -> Tensor | float:
        """What is added to the loss, in parts of the start's error, at ``step`` of ``steps``: the weighted mean over the weights of
        1 - \\|2h - 1\\|^β, whose β falls from ``SOFT`` to ``SHARP`` along a cosine. 0 in the first steps."""
        begun = (step - WARM * steps) / max(steps - WARM * steps, 1)
        if begun < 0:
            return 0.0
        beta = SHARP + (SOFT - SHARP) * 0.5 * (1 + math.cos(begun * math.pi))
        open_ = 1 - (2 * self.parts() - 1).abs().pow(beta).mean()
        return open_.mul(STRENGTH * RISE ** (step / steps))

    @torch.no_grad()
    def rounded(self) -> QTensor:
        """Each weight at the value that it is nearer to now."""
        grid = self._grid
        if self.log_scale is not None:
            grid = replace(grid, scale=(grid.scale * self.log_scale.exp().cpu()).to(grid.scale.dtype))
        found = torch.where(self.parts() >= 0.5, self.low + self.gap, self.low)
        return grid.with_codes(self._form.encode(found).cpu())


def neighbour(values: Tensor, above: Tensor, form: NumberFormat) -> Tensor:
    """The next representable value of ``form`` after each of ``values``, which are representable, in units of the scale: the one above
    where ``above`` is set, else the one below. At an end of the range it is the value itself."""
    if not form.levels:
        return torch.where(above, values + 1, values - 1).clamp(form.low, form.high)
    levels = torch.tensor(sorted({level for level in form.levels if not math.isnan(level)}), dtype=values.dtype, device=values.device)
    place = torch.searchsorted(levels, values.contiguous())
    return levels[torch.where(above, place + 1, place - 1).clamp(0, len(levels) - 1)]


def adaround(weight: Tensor, grid: WeightQParams, second: Tensor, steps: int = 300) -> tuple[QTensor, str | None]:
    """``weight`` (out, in) on ``grid``: from GPTQ's rounding on, each weight to one of two values so that the squared error
    tr(D H Dᵀ) at the layer's output is small, H being the inputs' second moments (in, in); each output keeps GPTQ's where that has less.
    For matrices whose inputs are known by their moments alone; ``lowering.graph.reconstruct`` learns on the inputs themselves."""
    start, note = gptq(weight, grid, second)
    old = output_error(start.dequantize() - weight, second)
    with torch.enable_grad():
        soft = SoftRounding(weight, start)
        optimizer = torch.optim.Adam([soft.v], lr=2e-2)
        for step in range(steps):
            loss = output_error(soft() - weight, second).sum() / old.sum().clamp_min(1e-30) + soft.penalty(step, steps)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    found = soft.rounded()
    better = output_error(found.dequantize() - weight, second) < old
    return replace(start, codes=torch.where(better[:, None], found.codes, start.codes)), note
