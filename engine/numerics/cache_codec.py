"""Keys or values of a decoder as codes of few bits, a token's codes and scales side by side in bytes.

A token of a head is one row of bytes, whatever the scheme: what a cache does with rows (append, crop, reorder, slide) it does with
them as with numbers, and the bytes that a cache takes are the bytes of its tensors.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.errors import EngineError
from engine.numerics.packing import pack, packed_width, unpack
from engine.recipe.cache_spec import CacheSpec

_LARGEST = {"int8": 127.0, "int4": 7.0, "fp8_e4m3": 448.0}
# Codes of 4 bits in groups have an offset and count from it.
_UNSIGNED = 15.0
# The least float16 that is not zero, and the largest.
_TINY, _FLOAT16 = 2.0**-24, 65504.0


@dataclass(frozen=True)
class CacheCodec:
    """For rows of ``width`` channels. ``step``, float32, multiplies a code: (heads, 1, width) or () where it comes from calibration, None
    where each row has its own."""

    spec: CacheSpec
    width: int
    step: Tensor | None = None

    @property
    def groups(self) -> int:
        """Scales of a row; 0 where they come from calibration."""
        if self.spec.calibrated:
            return 0
        return -(-self.width // self.spec.group_size) if self.spec.granularity == "per-group" else 1

    @property
    def offsets(self) -> bool:
        """Whether each scale has an offset beside it."""
        return self.spec.format == "int4" and not self.spec.calibrated

    @property
    def row_bytes(self) -> int:
        """Bytes of a row: codes, then scales, then offsets, of two bytes each."""
        return packed_width(self.width, self.spec.bits) + 2 * self.groups * (2 if self.offsets else 1)

    def encode(self, x: Tensor) -> Tensor:
        """(..., heads, tokens, width) in floating point to uint8 (..., heads, tokens, ``row_bytes``). Raises EngineError for numbers
        that are not finite, which no scale covers."""
        values = x.to(torch.float32)
        if not torch.isfinite(values).all():
            raise EngineError("keys or values are NaN or infinite: check the weights, or leave the cache in floats")
        if self.step is not None:
            return self._bytes(_rounded(values / self.step.to(values.device), self.spec.format))
        grouped = self._grouped(values)
        if self.offsets:
            low, high = grouped.amin(-1, keepdim=True), grouped.amax(-1, keepdim=True)
            low = low.clamp(-_FLOAT16, _FLOAT16).to(torch.float16)
            step = ((high - low.to(torch.float32)) / _UNSIGNED).clamp(_TINY, _FLOAT16).to(torch.float16)
            codes = ((grouped - low.to(torch.float32)) / step.to(torch.float32)).round_().clamp_(0, _UNSIGNED).to(torch.uint8)
            parts: tuple[Tensor, ...] = (step, low)
            return torch.cat([self._packed(self._flat(codes)), *map(_as_bytes, parts)], -1)
        step = (grouped.abs().amax(-1, keepdim=True) / _LARGEST[self.spec.format]).clamp(_TINY, _FLOAT16).to(torch.float16)
        rounded = _rounded(grouped / step.to(torch.float32), self.spec.format)
        return torch.cat([self._bytes(self._flat(rounded)), _as_bytes(step)], -1)

    def decode(self, rows: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """The inverse, as far as codes have it: (..., ``width``)."""
        held, at = packed_width(self.width, self.spec.bits), 2 * self.groups
        codes = rows[..., :held]
        if self.step is not None:
            return (self._values(codes) * self.step.to(rows.device)).to(dtype)
        step = _as_floats(rows[..., held : held + at])
        if self.offsets:
            low = _as_floats(rows[..., held + at :])
            found = self._grouped(self._unpacked(codes).to(torch.float32)) * step + low
        else:
            found = self._grouped(self._values(codes)) * step
        return self._flat(found).to(dtype)

    def _grouped(self, values: Tensor) -> Tensor:
        """(..., width) to (..., groups, size). The places that the last group lacks repeat the last channel, which moves no range."""
        size = -(-self.width // self.groups) if self.spec.granularity != "per-group" else self.spec.group_size
        lacking = size * self.groups - self.width
        if lacking:
            values = torch.cat([values, values[..., -1:].expand(*values.shape[:-1], lacking)], -1)
        return values.reshape(*values.shape[:-1], self.groups, size)

    def _flat(self, grouped: Tensor) -> Tensor:
        return grouped.flatten(-2)[..., : self.width]

    def _bytes(self, rounded: Tensor) -> Tensor:
        """Representable values, in units of the step, as bytes."""
        if self.spec.format == "fp8_e4m3":
            return rounded.to(torch.float8_e4m3fn).view(torch.uint8)
        if self.spec.format == "int8":
            return rounded.to(torch.int8).view(torch.uint8)
        return self._packed((rounded + 8).to(torch.uint8))

    def _values(self, codes: Tensor) -> Tensor:
        """The inverse of ``_bytes``."""
        if self.spec.format == "int4":
            return self._unpacked(codes).to(torch.float32) - 8
        kind = torch.float8_e4m3fn if self.spec.format == "fp8_e4m3" else torch.int8
        return codes.contiguous().view(kind).to(torch.float32)

    def _packed(self, codes: Tensor) -> Tensor:
        return _by_rows(codes, lambda rows: pack(rows, self.spec.bits))

    def _unpacked(self, packed: Tensor) -> Tensor:
        return _by_rows(packed, lambda rows: unpack(rows, self.width, self.spec.bits))


def largest_code(spec: CacheSpec) -> float:
    """What a calibrated step multiplies at most."""
    return _LARGEST[spec.format]


def _rounded(values: Tensor, name: str) -> Tensor:
    top = _LARGEST[name]
    bounded = values.clamp(-top, top)
    return bounded.to(torch.float8_e4m3fn).to(torch.float32) if name == "fp8_e4m3" else bounded.round_()


def _by_rows(values: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
    changed = change(values.reshape(-1, values.shape[-1]).contiguous())
    return changed.reshape(*values.shape[:-1], changed.shape[-1])


def _as_bytes(scale: Tensor) -> Tensor:
    """float16 (..., groups, 1) to uint8 (..., 2 * groups)."""
    return scale.flatten(-2).contiguous().view(torch.uint8)


def _as_floats(rows: Tensor) -> Tensor:
    """The inverse, float32 (..., groups, 1)."""
    return rows.contiguous().view(torch.float16).to(torch.float32)[..., None]
