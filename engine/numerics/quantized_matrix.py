"""One matrix on integers, with what its inputs become: what a lowering hands to a kernel."""

from __future__ import annotations

from dataclasses import dataclass

from engine.numerics.qparams import QParams
from engine.numerics.qtensor import QTensor
from engine.recipe.spec import ActivationSpec


@dataclass(frozen=True)
class QuantizedMatrix:
    """``weight`` is (out, in), or (rows, width) of an embedding. ``activations`` None computes with float inputs; otherwise they are
    rounded as they come (``dynamic``), or to ``grid``, which calibration has found.

    ``tied`` names the matrix whose integers these are too: the head of a decoder that shares its embedding's."""

    weight: QTensor
    activations: ActivationSpec | None = None
    grid: QParams | None = None
    tied: str | None = None

    @property
    def bytes(self) -> int:
        """On disk; a tied matrix is stored where it is first."""
        return 0 if self.tied else self.weight.bytes
