"""Linear layers on the compiled products: float32 in and out."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.kernels.jit.products import MIDDLE, Product, Rounding, padded
from engine.kernels.matrix.nibbles import group_of, packed
from engine.kernels.matrix.weight_only import ROWS, by_slices, wide
from engine.numerics.qtensor import QTensor
from engine.recipe.spec import ActivationSpec

# Weights that are wide at a time, in outputs by sixteens.
_SLICE, _PANELS = 1 << 22, 16


class Int8:
    """(..., in) to (..., out). Inputs are rounded as ``activations`` says, else to 16 bits. But more than ``ROWS`` tokens with float
    activations are multiplied with weights that are widened slice by slice, where the processor multiplies bfloat16."""

    def __init__(self, weight: QTensor, bias: Tensor | None, activations: ActivationSpec | None = None) -> None:
        self.shape = (weight.codes.shape[0], weight.codes.shape[1])
        asked = _rounding(activations)
        self._lacking = padded(8, self.shape[1], asked) - self.shape[1]
        self._scale, self._bias = weight.channel_scale.contiguous(), None if bias is None else bias.float()
        self._product = Product(F.pad(weight.codes, (0, self._lacking)), self._scale, self._bias, asked=asked)
        self._widen = asked is None and widens()

    def rows(self, weight: Tensor) -> Callable[[Tensor], Tensor] | None:
        """A way to look up the rows of ``weight``, that of this layer, in its memory."""
        return self._look if tuple(weight.shape) == self.shape else None

    def _look(self, ids: Tensor) -> Tensor:
        return self._product.rows(ids)[:, : self.shape[1]]

    def __call__(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        rows = F.pad(rows, (0, self._lacking)) if self._lacking else rows
        if not self._widen or len(rows) <= ROWS:
            return self._product(rows.float()).view(*x.shape[:-1], -1)
        y = by_slices(rows.to(torch.bfloat16), self.shape[0], _at_once(rows.shape[1]), self._widened)
        y = torch.mul(y, self._scale)
        return (y if self._bias is None else y.add_(self._bias)).view(*x.shape[:-1], -1)

    def _widened(self, at: slice) -> Tensor:
        return self._product.codes(at.start, at.stop).to(torch.bfloat16)


class Int4:
    """As ``Int8``, on nibbles with a step and an offset for each group."""

    def __init__(self, weight: QTensor, bias: Tensor | None, activations: ActivationSpec | None = None) -> None:
        size = group_of(weight.scheme, weight.codes.shape[1])
        codes, scales = packed(weight, size)
        self._out = len(weight.codes)
        step, added = (scales[..., part].t().contiguous() for part in (0, 1))
        self._bias = None if bias is None else bias.float()
        asked = _rounding(activations)
        self._product = Product(codes, step, self._bias, added, size, asked)
        self._widen = asked is None and widens()
        self._scales = (step, added) if self._widen else None

    def __call__(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        if not self._widen or len(rows) <= ROWS:
            return self._product(rows.float()).view(*x.shape[:-1], -1)
        y = by_slices(rows.to(torch.bfloat16), self._out, _at_once(x.shape[-1]), self._widened)
        return (y.float() if self._bias is None else y.float().add_(self._bias)).view(*x.shape[:-1], -1)

    def _widened(self, at: slice) -> Tensor:
        assert self._scales is not None
        step, added = (scale[at, :, None].float() for scale in self._scales)
        codes = self._product.codes(at.start, at.stop)
        found = torch.addcmul(added, codes.view(len(codes), step.shape[1], -1).float().sub_(MIDDLE), step)
        return found.flatten(1).to(torch.bfloat16)


def widens() -> bool:
    """Whether a prompt is faster on weights in bfloat16 than with inputs of 16 bits: where the processor multiplies such."""
    return wide("cpu") == torch.bfloat16


def _at_once(inputs: int) -> int:
    """Outputs of a slice: whole panels."""
    return max(_SLICE // inputs // _PANELS, 1) * _PANELS


def _rounding(activations: ActivationSpec | None) -> Rounding | None:
    return None if activations is None else Rounding(activations.bits, activations.group_size)
