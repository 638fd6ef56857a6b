"""A few rows in float32 times int8 or int4 weights, as functions of tensors."""

from __future__ import annotations

from ctypes import CFUNCTYPE, addressof, c_int64, c_uint, c_void_p
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.kernels.jit.compiler import compiler
from engine.kernels.jit.products_ir import FIELDS, LARGEST_GROUP, function, half, rounding

_PARALLEL = CFUNCTYPE(None, c_void_p, c_void_p, c_uint, c_uint)
_ALONE = CFUNCTYPE(None, c_void_p)


class Product:
    """``x`` (rows, inputs) to (rows, out), float32. Keeps the weights; for one thread at a time.

    ``weight`` is int8 (out, inputs), ``scale`` float32 (out,); or uint8 (out, inputs / 2) of ``interleaved``, with ``scale`` and
    ``added`` in bfloat16 (out, groups): a weight is ``(q - 8) * scale + added``.
    """

    def __init__(self, weight: Tensor, scale: Tensor, bias: Tensor | None, added: Tensor | None = None) -> None:
        self._bits = 8 if added is None else 4
        self.out, self.inputs = weight.shape[0], weight.shape[1] * (8 // self._bits)
        groups = 1 if added is None else scale.shape[1]
        self._groups = groups
        bias = torch.zeros(self.out) if bias is None else bias.float().contiguous()
        self._held = (weight.contiguous(), scale.contiguous(), None if added is None else F.pad(added, (0, -groups % 8)).contiguous(), bias)
        self._arguments = (c_int64 * len(FIELDS))()
        pointers = [0 if held is None else held.data_ptr() for held in self._held]
        self._arguments[1:5] = pointers  # type: ignore[assignment]
        self._arguments[11:16] = [self.out, self.inputs, groups, self.inputs // groups, groups + -groups % 8]
        self._run, self._body = _functions(self._bits, half_of(self.inputs // groups) == half(True))
        self._round = None if added is None else _rounding()
        self._address = addressof(self._arguments)
        self._scratch: tuple[Tensor, ...] = ()

    def __call__(self, x: Tensor) -> Tensor:
        x = x if x.is_contiguous() else x.contiguous()
        y = torch.empty(len(x), self.out)
        arguments = self._arguments
        arguments[0], arguments[5], arguments[10] = x.data_ptr(), y.data_ptr(), len(x)
        if self._round is not None:
            if not self._scratch or len(self._scratch[0]) < len(x):
                sizes = (len(x), self._groups)
                self._scratch = (
                    torch.empty(sizes),
                    torch.empty(x.shape, dtype=torch.int16),
                    torch.empty(sizes),
                    torch.empty(sizes, dtype=torch.int32),
                )
                arguments[6:10] = [held.data_ptr() for held in self._scratch]
            self._round(self._address)
        self._run(self._body, self._address, torch.get_num_threads(), 0)
        return y


def half_of(size: int) -> int:
    """How many low nibbles lie together where groups have ``size`` inputs; 0 where the kernel has no such groups."""
    wide = half(True)
    if size > LARGEST_GROUP:
        return 0
    return wide if compiler().wide and size % (2 * wide) == 0 else half(False) if size % (2 * half(False)) == 0 else 0


def interleaved(codes: Tensor, size: int) -> Tensor:
    """Codes 0..15 (out, inputs) in groups of ``size`` as the kernel reads them: uint8 (out, inputs / 2)."""
    parts = codes.to(torch.uint8).view(len(codes), -1, 2, half_of(size))
    return (parts[:, :, 0] | (parts[:, :, 1] << 4)).reshape(len(codes), -1).contiguous()


def codes_of(packed: Tensor, size: int) -> Tensor:
    """The inverse of ``interleaved``, uint8."""
    parts = packed.view(len(packed), -1, half_of(size))
    return torch.stack([parts & 15, parts >> 4], 2).reshape(len(packed), -1)


@lru_cache(maxsize=1)
def _rounding() -> Any:
    return _ALONE(compiler().address("int16_groups", rounding("int16_groups")))


@lru_cache(maxsize=4)
def _functions(bits: int, wide: bool) -> tuple[Any, int]:
    """What runs a function on all threads, and the address of one thread's part."""
    made = compiler()
    name = f"int{bits}_rows{'_wide' if wide else ''}"
    return _PARALLEL(made.parallel_address), made.address(name, function(name, bits, 8 if made.wide else 4, wide))
