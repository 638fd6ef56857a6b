"""int8 weights in oneDNN's layout, held once and multiplied with any number of rows."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor

from engine.kernels.dnnl.blocks import BlockedRows, blocked_rows
from engine.kernels.dnnl.library import Library
from engine.kernels.dnnl.primitive import (
    BIAS,
    DST,
    SRC,
    WEIGHTS,
    Attributes,
    Bound,
    Handle,
    Primitive,
    addresses,
    described,
    descriptor,
    memory,
    reordered,
    wanted,
)  # fmt: skip

_SHAPES = 4
# The weights lie as oneDNN wants them for a prompt of so many rows.
_PROMPT = 64


class PackedWeights:
    """``weight`` int8 (out, in), for sources of ``dtype`` (int8 or uint8) with these ``attributes``. Raises EngineError where oneDNN
    has no such product."""

    def __init__(self, dnnl: Library, weight: Tensor, dtype: torch.dtype, attributes: Attributes) -> None:
        self._library, self._dtype = dnnl, dtype
        self.shape = (weight.shape[0], weight.shape[1])
        dnnl.match_threads()
        free = descriptor(dnnl, (self.shape[1], self.shape[0]), torch.int8)
        self._layout = wanted(dnnl, self._described(_PROMPT, attributes, None, free), WEIGHTS)
        self._held = reordered(dnnl, weight.t(), self._layout)

    @property
    def space(self) -> Tensor:
        """The memory, uint8, with what oneDNN keeps behind the numbers."""
        found: Tensor = self._held.keep[1]
        return found

    def rows(self, weight: Tensor) -> BlockedRows | None:
        """A way to look the rows of ``weight`` up in the memory that is held for it, or None where its layout is not known."""
        return blocked_rows(self.space, weight)

    def product(self, rows: int, attributes: Attributes, bias: Tensor | None) -> Bound:
        """Made for a number of rows: on a source (rows, in) and a float32 result (rows, out), both dense."""
        dnnl = self._library
        about = self._described(rows, attributes, bias, self._layout)
        constants = [(WEIGHTS, self._held), *attributes.arguments(dnnl)]
        if bias is not None:
            constants.append((BIAS, memory(dnnl, self._result(1), bias)))
        source, target = descriptor(dnnl, (rows, self.shape[1]), self._dtype, (self.shape[1], 1)), self._result(rows)
        return Primitive(dnnl, about, constants, [(SRC, source), (DST, target)]).bind(torch.empty(0), torch.empty(0))

    def _described(self, rows: int, attributes: Attributes, bias: Tensor | None, weights: Handle) -> Handle:
        dnnl, given = self._library, self.shape[1]
        # In variables: oneDNN frees each with its handle.
        source, target = descriptor(dnnl, (rows, given), self._dtype, (given, 1)), self._result(rows)
        added, extra = None if bias is None else self._result(1), attributes.handle(dnnl)
        return described(dnnl, "matmul", dnnl.engine, *addresses((source, weights, added, target)), extra.address)

    def _result(self, rows: int) -> Handle:
        return descriptor(self._library, (rows, self.shape[0]), torch.float32, (self.shape[0], 1))


class Products:
    """The products of one matrix by number of rows and threads: a few are kept, that of a single row always."""

    def __init__(self, dnnl: Library, weights: PackedWeights, attributes: Attributes, bias: Tensor | None) -> None:
        self._library, self._weights, self._attributes, self._bias = dnnl, weights, attributes, bias
        self._made: OrderedDict[tuple[int, int], Bound] = OrderedDict()
        self._single: tuple[int, Bound] | None = None

    def of(self, rows: int) -> Bound:
        threads = self._library.match_threads()
        if rows == 1:
            if self._single is None or self._single[0] != threads:
                self._single = threads, self._weights.product(1, self._attributes, self._bias)
            return self._single[1]
        bound = self._made.get((rows, threads))
        if bound is None:
            bound = self._made[rows, threads] = self._weights.product(rows, self._attributes, self._bias)
            if len(self._made) > _SHAPES:
                self._made.popitem(last=False)
        return bound
