"""The ways to bring a matrix to low bits, by name. A method is a line here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from engine.algorithms.awq import awq
from engine.algorithms.gptq import gptq
from engine.algorithms.gram import Gram
from engine.algorithms.hqq import hqq
from engine.algorithms.mse import mse
from engine.algorithms.nearest import nearest
from engine.algorithms.refine import refine
from engine.algorithms.smoothquant import smoothquant
from engine.errors import UsageError
from engine.errors import nearest as closest
from engine.numerics.qtensor import QTensor
from engine.numerics.scheme import WeightScheme
from engine.numerics.weights import WeightQParams, minmax

# A scale (in,) for the common input of weights (out, in); the grid of one weight; the weight on it, and a note or None. The
# tensor that the last two may look at is the inputs' second moments (in, in).
Scaling = Callable[[Sequence[Tensor], Sequence[WeightScheme], Gram], Tensor]
Gridding = Callable[[Tensor, WeightScheme, Tensor | None], WeightQParams]
Rounding = Callable[[Tensor, WeightQParams, Tensor], tuple[QTensor, str | None]]


@dataclass(frozen=True)
class Method:
    """``grid`` sees the inputs' moments only where ``weighted``. A ``centred`` method lets the layer's bias, where it has one,
    take up the mean of the output error, and minimizes the rest. ``propagation`` in 0..1 is how far the weights are first moved
    to make good what the layers before have lost; it doubles the forward passes."""

    title: str
    grid: Gridding
    rounding: Rounding = nearest
    scaling: Scaling | None = None
    weighted: bool = False
    centred: bool = False
    propagation: float = 0.0

    @property
    def needs_inputs(self) -> bool:
        """Whether calibration text is needed at all."""
        return self.weighted or self.centred or self.propagation > 0 or self.scaling is not None or self.rounding is not nearest

    @property
    def judged(self) -> bool:
        """Whether it can be worse than rounding to nearest, and has inputs to tell it by."""
        return self.needs_inputs and not (self.rounding is nearest and self.grid is _minmax)


def _minmax(weight: Tensor, spec: WeightScheme, second: Tensor | None) -> WeightQParams:
    return minmax(weight, spec)


def gptq_refined(weight: Tensor, grid: WeightQParams, second: Tensor) -> tuple[QTensor, str | None]:
    """GPTQ, then ``refine``."""
    rounded, note = gptq(weight, grid, second)
    return refine(rounded, weight, second), note


METHODS: dict[str, Method] = {
    "nearest": Method("round to nearest", _minmax),
    "mse": Method("least-error clipping", mse),
    "hqq": Method("HQQ", hqq),
    "gptq": Method("GPTQ", mse, gptq, centred=True),
    "hqq+gptq": Method("GPTQ on HQQ grids", hqq, gptq, centred=True),
    "gptq+": Method("GPTQ, refined, errors propagated", mse, gptq_refined, centred=True, propagation=0.5),
    "awq": Method("AWQ", mse, scaling=awq, weighted=True),
    "awq+gptq": Method("AWQ, then GPTQ", mse, gptq, awq, weighted=True, centred=True),
    "smoothquant": Method("SmoothQuant", _minmax, scaling=smoothquant),
}


def method(name: str) -> Method:
    """Raises UsageError for a name that is not known."""
    if name not in METHODS:
        raise UsageError(f"no method {name!r}: {closest(name, list(METHODS))}")
    return METHODS[name]
