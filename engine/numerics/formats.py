"""Number formats: what one stored code stands for, how a value is rounded to it, and how codes lie in bytes.

``intN`` are signed integers that are symmetric around zero, ``uintN`` unsigned ones with a zero point; the rest are the lines of
``engine.recipe.number_formats``. A format whose values are no consecutive integers lists them in ``levels``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from engine.errors import UsageError
from engine.numerics.packing import pack, packed_width, unpack
from engine.recipe.number_formats import NUMBER_FORMATS, BlockLayout, FormatEntry


def round_to(values: Tensor, low: float, high: float, zero: Tensor | float | None = None) -> Tensor:
    """``clamp(round(values) + zero, low, high)``, halves to even: rounding to consecutive integers, wherever it happens."""
    return _bounded(values.round(), low, high, zero)


def round_to_(values: Tensor, low: float, high: float, zero: Tensor | float | None = None) -> Tensor:
    """``round_to`` in place."""
    return _bounded(values.round_(), low, high, zero)


def _bounded(rounded: Tensor, low: float, high: float, zero: Tensor | float | None) -> Tensor:
    if zero is not None:
        rounded.add_(zero)
    return rounded.clamp_(low, high)


@dataclass(frozen=True)
class NumberFormat:
    """How one number is stored.

    A code of ``bits`` bits, held in memory as ``storage``, stands for a value from ``low`` to ``high``, which a scale of the dtype
    ``scale`` multiplies. ``affine`` formats have a zero point beside it: an integer in the range of the codes. ``block`` is how many
    values share a scale where the format says so itself, 0 where whoever uses it does. ``levels`` are the values of the codes 0, 1, …
    where those are not the codes themselves; a code whose level is NaN is never chosen. ``layout`` is how GGUF stores blocks of it.

    >>> FORMATS["int4"].round(torch.tensor([2.5, 9.0]))
    tensor([2., 7.])
    """

    name: str
    bits: int
    storage: torch.dtype
    low: float
    high: float
    affine: bool = False
    block: int = 0
    scale: torch.dtype = torch.float16
    levels: tuple[float, ...] = ()
    layout: BlockLayout | None = None

    def round(self, values: Tensor, zero: Tensor | float | None = None) -> Tensor:
        """The representable values nearest to ``values``, which are in units of the scale and floating point, of the same dtype.
        Halves go to the even code, and what lies outside to the nearest end. ``zero`` is added before the range is looked at; where
        the format is ``shifted`` it is a real number and added before rounding."""
        return self.round_(values.clone(), zero) if self.levels else round_to(values, self.low, self.high, zero)

    def round_(self, values: Tensor, zero: Tensor | float | None = None) -> Tensor:
        """``round`` in place."""
        if not self.levels:
            return round_to_(values, self.low, self.high, zero)
        if zero is not None:
            if not self.shifted:
                raise ValueError(f"{self.name} has no zero point")
            values.add_(zero)
        if self._consecutive:
            return round_to_(values, self.low, self.high)
        return values.copy_(self._sorted[0].to(values)[self._places(values)])

    def encode(self, rounded: Tensor) -> Tensor:
        """Codes of the dtype ``storage`` for representable values, as ``round`` gives them."""
        if not self.levels:
            return rounded.to(self.storage)
        if self._consecutive:
            return (rounded - self.low).to(self.storage)
        return self._sorted[1].to(rounded.device)[self._places(rounded)].to(self.storage)

    def decode(self, codes: Tensor) -> Tensor:
        """The values of ``codes`` in float32, in new memory."""
        if not self.levels:
            return codes.to(torch.float32, copy=True)
        return torch.tensor(self.levels, device=codes.device)[codes.long()]

    def pack(self, codes: Tensor) -> Tensor:
        """uint8 (rows, ``packed_width(columns)``) of codes (rows, columns); signed integers are moved to begin at zero."""
        return pack((codes - self._first).to(torch.uint8), self.bits)

    def unpack(self, packed: Tensor, columns: int) -> Tensor:
        """The inverse of ``pack``. Raises EngineError where the bytes are not those of ``columns`` codes a row."""
        codes = unpack(packed, columns, self.bits)
        return (codes.to(torch.int16) + self._first).to(self.storage) if self._first else codes.to(self.storage)

    def packed_width(self, columns: int) -> int:
        """Bytes of a row of ``columns`` codes."""
        return packed_width(columns, self.bits)

    @property
    def two_level(self) -> bool:
        """Whether one float32 for the tensor multiplies all scales."""
        return self.scale == torch.float8_e4m3fn

    @property
    def shifted(self) -> bool:
        """Whether groups have a real offset, so that zero lies anywhere between the codes' values."""
        return self.layout is not None and self.layout.offset

    @property
    def moved(self) -> bool:
        """Whether a group's codes have something subtracted from them: an integer zero point or a real one."""
        return self.affine or self.shifted

    @cached_property
    def _consecutive(self) -> bool:
        """Whether the codes' values are integers in their order."""
        return self.levels == tuple(self.low + step for step in range(len(self.levels)))

    @property
    def _first(self) -> int:
        """The least code."""
        return 0 if self.levels else int(self.low)

    @cached_property
    def _sorted(self) -> tuple[Tensor, Tensor]:
        """The values in ascending order, and the first code of each."""
        first: dict[float, int] = {}
        for code, level in enumerate(self.levels):
            if not math.isnan(level):
                first.setdefault(level, code)
        values = sorted(first)
        return torch.tensor(values, dtype=torch.float64), torch.tensor([first[value] for value in values])

    def _places(self, values: Tensor) -> Tensor:
        """Where the nearest value is among the sorted ones."""
        levels, codes = (part.to(values.device) for part in self._sorted)
        middle = (levels[1:] + levels[:-1]) / 2
        exact = values.to(torch.float64)
        place = torch.bucketize(exact, middle)
        halfway = exact == torch.nn.functional.pad(middle, (0, 1), value=torch.inf)[place]
        return place + (halfway & (codes[place] % 2 == 1))


def _signed(bits: int) -> NumberFormat:
    return NumberFormat(f"int{bits}", bits, torch.int8, -(1 << (bits - 1)), (1 << (bits - 1)) - 1)


def _unsigned(bits: int) -> NumberFormat:
    return NumberFormat(f"uint{bits}", bits, torch.uint8, 0, (1 << bits) - 1, affine=True)


_SCALES = {"float16": torch.float16, "e8m0": torch.float8_e8m0fnu, "e4m3": torch.float8_e4m3fn}


def of_entry(entry: FormatEntry) -> NumberFormat:
    """The format that a recipe names."""
    values = [level for level in entry.levels if not math.isnan(level)]
    return NumberFormat(
        entry.name, entry.bits, torch.uint8, min(values), max(values), block=entry.block, scale=_SCALES[entry.scale],
        levels=entry.levels, layout=entry.layout,
    )  # fmt: skip


FORMATS: dict[str, NumberFormat] = {
    form.name: form
    for form in (
        *(_signed(bits) for bits in range(2, 9)), *(_unsigned(bits) for bits in range(2, 9)), *map(of_entry, NUMBER_FORMATS.values()),
    )
}  # fmt: skip


def integer(bits: int, signed: bool = True) -> NumberFormat:
    """The format of integers of 2 to 8 bits. Raises UsageError for other widths."""
    form = FORMATS.get(f"{'' if signed else 'u'}int{bits}")
    if form is None:
        raise UsageError(f"{bits} bits: integer weights have 2 to 8")
    return form
