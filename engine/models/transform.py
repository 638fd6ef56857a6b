"""How a photograph becomes the input that weights were trained on. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Interpolation = Literal["bilinear", "bicubic"]
Triple = tuple[float, float, float]
# ImageNet's, which most published weights expect.
MEAN: Triple = (0.485, 0.456, 0.406)
STD: Triple = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Transform:
    """The shorter side is scaled to ``resize`` pixels, the middle ``size`` x ``size`` kept; ``mean`` and ``std`` are for pixels
    in 0..1."""

    size: int
    resize: int
    interpolation: Interpolation = "bilinear"
    mean: Triple = MEAN
    std: Triple = STD

    def __str__(self) -> str:
        return f"shorter side to {self.resize} pixels ({self.interpolation}), middle {self.size}×{self.size}"
