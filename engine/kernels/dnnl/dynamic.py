"""Linear layers whose activations are quantized as they come: one scale a row (a token), int8 weights, float32 out."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor

from engine.kernels.dnnl.library import Library, library
from engine.kernels.dnnl.primitive import DST, SRC, WEIGHTS, Attributes, Bound, Handle, Primitive, described, descriptor, reordered, wanted

_SHAPES = 4
_TOP = 127.0


class DynamicLinear:
    """``x`` (..., in) in float32 to (..., out) in float32, as ``x @ (weight * scale).T + bias`` with each row of ``x`` rounded to
    127 steps of its largest magnitude (per-token symmetric quantization, as in Yao et al. 2022, arXiv:2206.01861).

    ``weight`` is int8 (out, in), ``scale`` float32 (out,). Not for two threads at once. Raises EngineError without oneDNN.
    """

    def __init__(self, weight: Tensor, scale: Tensor, bias: Tensor | None, dnnl: Library | None = None) -> None:
        self._library = dnnl or library()
        self._weight, self._bias = weight.contiguous(), bias
        self._attributes = Attributes()
        self._attributes.scale(WEIGHTS, scale.float().contiguous(), 2)
        self._packed: list[tuple[Handle, Handle]] = []
        self._made: OrderedDict[tuple[int, int], Bound] = OrderedDict()

    def __call__(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[-1]).contiguous()
        step = torch.amax(rows.abs(), 1, keepdim=True).clamp_min_(1e-30).div_(_TOP)
        integers = torch.div(rows, step).round_().to(torch.int8)
        y = torch.empty(len(rows), len(self._weight))
        self._at(len(rows)).on(integers, y)
        y = y.mul_(step) if self._bias is None else torch.addcmul(self._bias, y, step)
        return y.view(*x.shape[:-1], -1)

    def _at(self, rows: int) -> Bound:
        key = (rows, self._library.match_threads())
        bound = self._made.get(key)
        if bound is None:
            bound = self._made[key] = self._make(rows)
            if len(self._made) > _SHAPES:
                self._made.popitem(last=False)
        return bound

    def _make(self, rows: int) -> Bound:
        dnnl, (out, given) = self._library, self._weight.shape
        source = descriptor(dnnl, (rows, given), torch.int8, (given, 1))
        target = descriptor(dnnl, (rows, out), torch.float32, (out, 1))
        free = descriptor(dnnl, (given, out), torch.int8)
        extra = self._attributes.handle(dnnl)
        handles = (source.address, free.address, None, target.address)
        about = described(dnnl, "matmul", dnnl.engine, *handles, extra.address)
        weights = self._weights(wanted(dnnl, about, WEIGHTS))
        constants = [(WEIGHTS, weights), *self._attributes.arguments(dnnl)]
        return Primitive(dnnl, about, constants, [(SRC, source), (DST, target)]).bind(torch.empty(0), torch.empty(0))

    def _weights(self, target: Handle) -> Handle:
        """Reordered once for each layout that a number of rows asks for; most ask for the same."""
        for layout, held in self._packed:
            if self._library.equal(layout.address, target.address):
                return held
        held = reordered(self._library, self._weight.t(), target)
        self._packed.append((target, held))
        return held
