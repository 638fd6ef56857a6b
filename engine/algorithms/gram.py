"""What a linear layer's inputs look like, gathered batch by batch without keeping them."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from engine.errors import EngineError


@dataclass
class Gram:
    """Sums over the inputs x (in,) of one linear layer: ``xx`` = sum of x xᵀ (in, in), ``total`` = sum of x, ``magnitude`` =
    sum of \\|x\\|, ``peak`` = largest \\|x\\|, each float32, and ``count``, the number of inputs.

    The error of a weight change D at the layer's output is then ``tr(D xx Dᵀ)`` without the inputs themselves.
    """

    width: int
    device: torch.device | str = "cpu"
    count: int = 0
    xx: Tensor = field(init=False)
    total: Tensor = field(init=False)
    magnitude: Tensor = field(init=False)
    peak: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.xx = torch.zeros(self.width, self.width, device=self.device)
        self.total, self.magnitude, self.peak = (torch.zeros(self.width, device=self.device) for _ in range(3))

    def add(self, x: Tensor, keep: Tensor | None = None) -> None:
        """Inputs (..., in); ``keep`` is bool of the leading shape and leaves padding out. Raises EngineError for NaN or infinity."""
        rows = x.detach().reshape(-1, self.width).to(torch.float32)
        if keep is not None:
            rows = rows[keep.reshape(-1)]
        if not len(rows):
            return
        peak = rows.abs().amax(0)
        if not torch.isfinite(peak).all():
            raise EngineError("a layer's inputs hold NaN or infinity on the calibration text: the model cannot be calibrated")
        self.xx.addmm_(rows.T, rows)
        self.total += rows.sum(0)
        self.magnitude += rows.abs().sum(0)
        self.peak = torch.maximum(self.peak, peak)
        self.count += len(rows)

    @property
    def second(self) -> Tensor:
        """Mean of x xᵀ (in, in)."""
        return self.xx / self.seen

    @property
    def mean(self) -> Tensor:
        return self.total / self.seen

    @property
    def mean_magnitude(self) -> Tensor:
        return self.magnitude / self.seen

    @property
    def covariance(self) -> Tensor:
        """Mean of x xᵀ less the part of the means: what is left of the error once the layer's bias absorbs its mean."""
        mean = self.total.to(torch.float64) / self.seen
        return (self.xx.to(torch.float64) / self.seen - mean[:, None] * mean).to(torch.float32)

    @property
    def seen(self) -> int:
        if not self.count:
            raise EngineError("no calibration input reached a layer: give calibration text that is not empty")
        return self.count

    def divided(self, scale: Tensor) -> Gram:
        """The statistics of x / scale, ``scale`` (in,) positive."""
        other = Gram.__new__(Gram)
        other.width, other.device, other.count = self.width, self.device, self.count
        other.xx = self.xx / (scale[:, None] * scale)
        other.total, other.magnitude, other.peak = self.total / scale, self.magnitude / scale, self.peak / scale
        return other


def output_error(change: Tensor, second: Tensor) -> Tensor:
    """Mean squared output error of each row of a weight change (out, in), by the inputs' second moments (in, in)."""
    return (change @ second).mul_(change).sum(1)
