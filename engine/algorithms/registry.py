"""The ways to bring a matrix to low bits, by name. A method is a line here. Cheap to import: what a method computes with is imported
when it is called."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal

from engine.errors import UsageError
from engine.errors import nearest as closest

if TYPE_CHECKING:
    from torch import Tensor

    from engine.algorithms.gram import Gram
    from engine.numerics.qtensor import QTensor
    from engine.numerics.scheme import WeightScheme
    from engine.numerics.weights import WeightQParams

    # A scale (in,) for the common input of weights (out, in); the grid of one weight; the weight on it, and a note or None. The
    # tensor that the last two may look at is the inputs' second moments (in, in).
    Scaling = Callable[[Sequence[Tensor], Sequence[WeightScheme], Gram], Tensor]
    Gridding = Callable[[Tensor, WeightScheme, Tensor | None], WeightQParams]
    Rounding = Callable[[Tensor, WeightQParams, Tensor], tuple[QTensor, str | None]]


@dataclass(frozen=True)
class Late:
    """A function by its place ``module:name``, imported when it is first called."""

    place: str

    @cached_property
    def function(self) -> Callable[..., Any]:
        module, _, name = self.place.partition(":")
        found: Callable[..., Any] = getattr(import_module(module), name)
        return found

    def __call__(self, *args: Any) -> Any:
        return self.function(*args)


minmax: Gridding = Late("engine.numerics.weights:minmax")
mse: Gridding = Late("engine.algorithms.mse:mse")
imatrix: Gridding = Late("engine.algorithms.mse:imatrix")
hqq: Gridding = Late("engine.algorithms.hqq:hqq")
nearest: Rounding = Late("engine.algorithms.nearest:nearest")
gptq: Rounding = Late("engine.algorithms.gptq:gptq")
adaround: Rounding = Late("engine.algorithms.soft_rounding:adaround")
gptq_refined: Rounding = Late("engine.algorithms.refine:gptq_refined")
awq: Scaling = Late("engine.algorithms.awq:awq")
smoothquant: Scaling = Late("engine.algorithms.smoothquant:smoothquant")


@dataclass(frozen=True)
class Method:
    """``grid`` sees the inputs' moments only where ``weighted``. A ``centred`` method lets the layer's bias, where it has one,
    take up the mean of the output error, and minimizes the rest. ``propagation`` in 0..1 is how far the weights are first moved
    to make good what the layers before have lost; it doubles the forward passes. A ``searched`` method, whose rounding takes each
    output by itself, tries several grids in a network and keeps for each output that of the least error. A ``reconstruction`` learns the
    rounding in a graph, from GPTQ's on, layer by layer or residual block by residual block; matrices of decoders have ``rounding``. A
    ``tuned`` method learns all matrices of a decoder's block together, on what the block gives."""

    title: str
    grid: Gridding
    rounding: Rounding = nearest
    scaling: Scaling | None = None
    weighted: bool = False
    centred: bool = False
    propagation: float = 0.0
    searched: bool = False
    reconstruction: Literal["", "layer", "block"] = ""
    tuned: bool = False

    @property
    def beginning(self) -> Method:
        """What a graph's layers are rounded by before their rounding is learned; the method itself where it is not."""
        return METHODS["gptq"] if self.reconstruction else self

    @property
    def needs_inputs(self) -> bool:
        """Whether calibration text is needed at all."""
        return self.tuned or self.weighted or self.centred or self.propagation > 0 or self.scaling is not None or self.rounding != nearest

    @property
    def judged(self) -> bool:
        """Whether it can be worse than rounding to nearest, and has inputs to tell it by."""
        return self.needs_inputs and not self.tuned and not (self.rounding == nearest and self.grid == minmax)

    @property
    def carries(self) -> bool:
        """Whether what the model without rounding gives is wanted too, block by block."""
        return self.tuned or self.propagation > 0

    @property
    def needs_blocks(self) -> str | None:
        """What it does that only a decoder's blocks have a place for, or None: then a layer of any network can have it."""
        if self.scaling is not None:
            return "folds scales into the layer before"
        if self.weighted:
            return "weighs errors by its inputs' moments"
        if self.tuned:
            return "learns on what a decoder's blocks give"
        return "carries errors from block to block" if self.propagation else None


METHODS: dict[str, Method] = {
    "nearest": Method("round to nearest", minmax),
    "mse": Method("least-error clipping", mse),
    "hqq": Method("HQQ", hqq),
    "gptq": Method("GPTQ", mse, gptq, centred=True, searched=True),
    "hqq+gptq": Method("GPTQ on HQQ grids", hqq, gptq, centred=True),
    "gptq+": Method("GPTQ, refined, errors propagated", mse, gptq_refined, centred=True, propagation=0.5),
    "awq": Method("AWQ", mse, scaling=awq, weighted=True),
    "awq+gptq": Method("AWQ, then GPTQ", mse, gptq, awq, weighted=True, centred=True),
    "adaround": Method("AdaRound", mse, adaround, centred=True, searched=True, reconstruction="layer"),
    "brecq": Method("BRECQ", mse, adaround, centred=True, searched=True, reconstruction="block"),
    "smoothquant": Method("SmoothQuant", minmax, scaling=smoothquant),
    "autoround": Method("AutoRound", minmax, tuned=True),
    "imatrix": Method("least error by importance", imatrix, weighted=True),
    "imatrix+gptq": Method("GPTQ on grids by importance", imatrix, gptq, weighted=True, centred=True),
}


def method(name: str) -> Method:
    """Raises UsageError for a name that is not known."""
    if name not in METHODS:
        raise UsageError(f"no method {name!r}: {closest(name, list(METHODS))}")
    return METHODS[name]
