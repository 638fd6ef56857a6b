"""Rows of inputs times int8 or int4 weights, as functions of tensors."""

from __future__ import annotations

from ctypes import CFUNCTYPE, addressof, c_int64, c_uint, c_void_p
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.kernels.jit.compiler import compiler
from engine.kernels.jit.ir import FIELDS
from engine.kernels.jit.products_ir import Form, Instructions, function, inputs_together, multiple
from engine.kernels.jit.rounding_ir import LARGEST, Rounded, rounding

_PARALLEL = CFUNCTYPE(None, c_void_p, c_void_p, c_uint, c_uint)
_ALONE = CFUNCTYPE(None, c_void_p)
# Codes of 4 bits lie around it; int8 is moved by the other where bytes are multiplied as unsigned ones.
MIDDLE, _UNSIGNED = 8, 128
# Inputs of a group whose sums of products with 16 bits fit 32 bits, by bits of the weights; and with 8 bits of both.
_MOST, _MOST_BYTES = {4: 1 << 12, 8: 512}, 1 << 16
# Rows whose rounded inputs stay in a cache while the weights pass.
_TOGETHER = 128
# Of these float32 of the inputs on are rounded on all threads.
_MANY = 1 << 14


@dataclass(frozen=True)
class Rounding:
    """How inputs are rounded: to ``bits`` integers around zero, each ``span`` of a row by its largest magnitude; 0 is the whole row."""

    bits: int
    span: int = 0


class Product:
    """``x`` (rows, inputs) to ``x @ weight.T + bias`` (rows, out), float32. Holds the weights; for one thread at a time.

    ``codes`` are int8 (out, inputs) and ``scale`` float32 (out,); or, with ``size``, codes 0..15 in groups of so many inputs, a multiple of
    32, with ``scale`` and ``added`` (out, groups) in bfloat16: a weight is ``(q - 8) * scale + added``. Inputs are a multiple of 16. Where
    ``asked`` says nothing they are rounded to 16 bits of the largest of each group, of up to 512 inputs with int8. Raises
    ValueError for sizes that the kernel does not have.
    """

    def __init__(
        self, codes: Tensor, scale: Tensor, bias: Tensor | None, added: Tensor | None = None, size: int = 0, asked: Rounding | None = None,
        instructions: Instructions | None = None,
    ) -> None:  # fmt: skip
        self._instructions = instructions or here()
        self._spelled = instructions is not None
        self.out, self.inputs = codes.shape
        self._bits = bits = 4 if size else 8
        rounded: Rounded = "bytes" if asked else "halves" if size else "words"
        span = self.inputs if asked and not asked.span else asked.span if asked else size
        self._size = size = group_size(bits, self.inputs, size, asked)
        self._groups, lanes = self.inputs // size, self._instructions.lanes
        self._moved = bits == 8 and rounded == "bytes" and self._instructions.dots
        lacking = -self.out % lanes
        self._weight = panels(codes ^ -128 if self._moved else codes, bits, lanes, inputs_together(bits, rounded))
        bias = F.pad(torch.zeros(self.out) if bias is None else bias.float(), (0, lacking))
        added = None if added is None or not added.any() else added
        kept = [None if part is None else _by_panel(part, self._groups, lanes) for part in (scale, added)] if bits == 4 else [
            F.pad(scale.float(), (0, lacking)), None
        ]  # fmt: skip
        self._held = (self._weight, *kept, bias)
        self._rounded: Rounded = rounded
        self._tiles = {tile: Form(bits, rounded, added is not None, tile) for tile in _tiles(rounded, lanes)}
        self._arguments = (c_int64 * len(FIELDS))()
        self._address = addressof(self._arguments)
        top = (1 << (asked.bits - 1)) - 1 if asked else LARGEST[rounded]
        middle = MIDDLE if bits == 4 else _UNSIGNED if self._moved else 0
        known = {
            "out": self.out,
            "inputs": self.inputs,
            "groups": self._groups,
            "size": size,
            "span": span or size,
            "middle": middle,
            "top": top,
        }
        known |= dict(
            zip(("weight", "scale", "added", "bias"), (0 if part is None else part.data_ptr() for part in self._held), strict=True)
        )
        for name, value in known.items():
            self._set(name, value)
        self._round = _rounding(rounded)
        self._scratch: tuple[Tensor, ...] = ()
        self._rows = 0

    def __call__(self, x: Tensor) -> Tensor:
        x = x if x.is_contiguous() else x.contiguous()
        y = torch.empty(len(x), self.out)
        for start in range(0, len(x), _TOGETHER):
            self._some(x[start : start + _TOGETHER], y[start : start + _TOGETHER])
        return y

    def _some(self, x: Tensor, y: Tensor) -> None:
        rows, threads = len(x), torch.get_num_threads()
        if rows > self._rows:
            self._reserve(rows)
        arguments = self._arguments
        arguments[_X], arguments[_Y], arguments[_ROWS] = x.data_ptr(), y.data_ptr(), rows
        alone, parallel, body = self._round
        if x.numel() < _MANY:
            alone(self._address)
        else:
            parallel(body, self._address, threads, 0)
        tile = max(tile for tile in self._tiles if tile < 2 * rows)
        parallel, body = _functions(self._tiles[tile], self._instructions, self._spelled)
        parallel(body, self._address, threads, 0)

    def codes(self, first: int = 0, last: int | None = None) -> Tensor:
        """Those of the outputs from ``first``, the start of a panel, to ``last``: uint8 0..15, or int8; (last - first, inputs)."""
        lanes, last = self._instructions.lanes, self.out if last is None else min(last, self.out)
        if first % lanes:
            raise ValueError(f"{first} is no start of a panel of {lanes}")
        part = self._weight[first // lanes : -(-last // lanes)]
        if self._bits == 4:
            part = torch.cat([part & 15, part >> 4], -1)
        found = part.transpose(1, 2).reshape(-1, self.inputs)[: last - first]
        return found ^ -128 if self._moved else found

    def rows(self, ids: Tensor) -> Tensor:
        """int8 weights of the outputs ``ids`` (n,), (n, inputs). Raises IndexError for one that is not there."""
        if len(ids) and int(ids.max()) >= self.out:
            raise IndexError(f"row {int(ids.max())} of {self.out}")
        lanes = self._instructions.lanes
        found = self._weight.transpose(1, 2)[ids.div(lanes, rounding_mode="floor"), ids.remainder(lanes)].reshape(len(ids), -1)
        return found ^ -128 if self._moved else found

    def _reserve(self, rows: int) -> None:
        wide = torch.int16 if self._rounded == "words" else torch.int8
        cells, groups = (rows, self.inputs), (rows, self._groups)
        low = torch.empty(cells if self._rounded == "halves" else 0, dtype=torch.int8)
        integers = torch.empty(groups, dtype=torch.int32)
        self._scratch = (torch.empty(cells, dtype=wide), low, torch.empty(groups), integers, torch.empty(groups))
        for name, held in zip(("q", "low", "steps", "middles", "sums"), self._scratch, strict=True):
            self._set(name, held.data_ptr())
        self._rows = rows

    def _set(self, name: str, value: int) -> None:
        self._arguments[FIELDS.index(name)] = value


def _tiles(rounded: Rounded, lanes: int) -> tuple[int, ...]:
    """How many rows of inputs share what is read of the weights, as far as there are registers for their sums."""
    return (1, 4, 8) if lanes > 8 or rounded == "bytes" else (1, 4)


_X, _Y, _ROWS = (FIELDS.index(name) for name in ("x", "y", "rows"))


def group_size(bits: int, inputs: int, size: int, asked: Rounding | None) -> int:
    """How many inputs have one step of theirs and one of the weight's: it divides ``size``, where weights are in groups, and the spans that
    inputs are rounded in. Raises ValueError where the kernel has no such groups."""
    unit = multiple(bits)
    limits = [size] if size else []
    limits += [asked.span] if asked and asked.span else []
    most = _MOST_BYTES if asked and bits == 8 else _MOST[bits]
    fits = [
        found for found in range(unit, min([most, inputs, *limits]) + 1, unit)
        if inputs % found == 0 and all(limit % found == 0 for limit in limits)
    ]  # fmt: skip
    if not fits or any(inputs % limit for limit in limits):
        raise ValueError(f"no groups of {limits or unit} in {inputs} inputs")
    return fits[-1]


def padded(bits: int, inputs: int, asked: Rounding | None) -> int:
    """To how many inputs rows of int8 are filled with zeros: with fewer, groups would be small, or there would be none."""
    unit = multiple(bits)
    filled = -(-inputs // unit) * unit
    if asked is None and filled > _MOST[bits] and group_size(bits, filled, 0, None) < _MOST[bits] // 4:
        return -(-inputs // 256) * 256
    return filled


def panels(codes: Tensor, bits: int, lanes: int, together: int) -> Tensor:
    """Codes (out, inputs) as the kernel reads them, ``together`` inputs of an output at a time: bytes (panels, inputs / together, lanes,
    together), of 4 bits two to a byte: the first half of those together in the low nibbles."""
    codes = F.pad(codes.to(torch.uint8 if bits == 4 else torch.int8), (0, 0, 0, -len(codes) % lanes))
    parts = codes.view(-1, lanes, codes.shape[1] // together, together).transpose(1, 2)
    if bits == 4:
        parts = parts[..., : together // 2] | (parts[..., together // 2 :] << 4)
    return parts.contiguous()


@lru_cache(maxsize=1)
def here() -> Instructions:
    """Those of this processor."""
    made = compiler()
    return Instructions(16 if made.dots and made.wide else 8, made.dots)


def _by_panel(scale: Tensor, groups: int, lanes: int) -> Tensor:
    """(out, its groups) to bfloat16 (panels, groups, lanes), each repeated where the kernel's groups are smaller."""
    wide = scale.to(torch.bfloat16).repeat_interleave(groups // scale.shape[1], 1)
    wide = F.pad(wide, (0, 0, 0, -len(scale) % lanes))
    return wide.view(-1, lanes, groups).transpose(1, 2).contiguous()


@lru_cache(maxsize=4)
def _rounding(rounded: Rounded) -> tuple[Any, Any, int]:
    """What rounds on one thread, and what runs it on all with the address of one thread's part."""
    made = compiler()
    name = f"round_to_{rounded}"
    address = made.address(name, rounding(name, rounded))
    return _ALONE(address), _PARALLEL(made.parallel_address), address


@lru_cache(maxsize=64)
def _functions(form: Form, instructions: Instructions, spelled: bool) -> tuple[Any, int]:
    """What runs a function on all threads, and the address of one thread's part."""
    made = compiler()
    name = f"{form.name(instructions)}{'_spelled' if spelled else ''}"
    return _PARALLEL(made.parallel_address), made.address(name, function(name, form, instructions, spelled))
