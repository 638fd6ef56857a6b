"""Integers of 2 to 8 bits side by side in bytes, as weights are stored.

Rows start on a byte. Within a row value i takes bits ``i * bits`` to ``(i + 1) * bits - 1`` of a little-endian bit
string: eight values of 3 bits fill three bytes, and of two nibbles the even-indexed one is the low one.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from engine.errors import EngineError


def packed_width(columns: int, bits: int) -> int:
    """Bytes of one row of ``columns`` values."""
    return -(-columns * bits // 8)


def pack(codes: Tensor, bits: int) -> Tensor:
    """uint8 (rows, columns) with values below ``2**bits`` to uint8 (rows, ``packed_width``). Unused bits are zero."""
    rows, columns = codes.shape
    if bits == 8:
        return codes.clone()
    if bits == 4:
        twos = torch.nn.functional.pad(codes, (0, 1)) if columns % 2 else codes
        # Into memory of its own, so that one row has the strides of several.
        packed = torch.empty(rows, twos.shape[1] // 2, dtype=torch.uint8, device=codes.device)
        return torch.bitwise_or(twos[:, 0::2], twos[:, 1::2] << 4, out=packed)
    eights = torch.nn.functional.pad(codes, (0, -columns % 8)).reshape(rows, -1, 8)
    word = torch.zeros(eights.shape[:2], dtype=torch.int64, device=codes.device)
    for place in range(8):
        word |= eights[:, :, place].to(torch.int64) << (bits * place)
    taken = torch.stack([(word >> (8 * place)) & 0xFF for place in range(bits)], 2).to(torch.uint8)
    return taken.reshape(rows, -1)[:, : packed_width(columns, bits)].contiguous()


def unpack(packed: Tensor, columns: int, bits: int) -> Tensor:
    """The inverse of ``pack``: uint8 (rows, columns). Raises EngineError where the bytes are not those of ``columns`` values."""
    if packed.dim() != 2 or packed.dtype != torch.uint8 or packed.shape[1] != packed_width(columns, bits):
        raise EngineError(
            f"packed weights of shape {tuple(packed.shape)} do not hold {columns} values of {bits} bits a row: "
            "the file is damaged; quantize the model again"
        )
    if bits == 8:
        return packed.clone()
    if bits == 4:
        both = torch.empty(packed.shape[0], packed.shape[1], 2, dtype=torch.uint8, device=packed.device)
        both[:, :, 0], both[:, :, 1] = packed & 0xF, packed >> 4
        return both.reshape(packed.shape[0], -1)[:, :columns].contiguous()
    taken = torch.nn.functional.pad(packed, (0, -packed.shape[1] % bits)).reshape(packed.shape[0], -1, bits)
    word = torch.zeros(taken.shape[:2], dtype=torch.int64, device=packed.device)
    for place in range(bits):
        word |= taken[:, :, place].to(torch.int64) << (8 * place)
    codes = torch.stack([(word >> (bits * place)) & (2**bits - 1) for place in range(8)], 2).to(torch.uint8)
    return codes.reshape(packed.shape[0], -1)[:, :columns].contiguous()


def pack_nibbles(values: Tensor) -> Tensor:
    """int8 numbers in -8..7, any shape, to uint8 of half the count: the even-indexed one in the low nibble."""
    flat = (values.flatten() & 0xF).to(torch.uint8)
    if flat.numel() % 2:
        flat = torch.cat([flat, flat.new_zeros(1)])
    return flat[0::2] | (flat[1::2] << 4)


def unpack_nibbles(packed: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The inverse of ``pack_nibbles``."""
    both = torch.stack([packed & 0xF, packed >> 4], 1).flatten()[: math.prod(shape)].to(torch.int8)
    return torch.where(both > 7, both - 16, both).reshape(shape)


def pack_signed(values: Tensor, bits: int) -> Tensor:
    """int8 numbers in ``-2**(bits - 1)..2**(bits - 1) - 1``, any shape, to uint8 (bytes,): one bit string in two's complement."""
    codes = (values.flatten() & (2**bits - 1)).to(torch.uint8)
    return pack(codes[None], bits)[0]


def unpack_signed(packed: Tensor, shape: tuple[int, ...], bits: int) -> Tensor:
    """The inverse of ``pack_signed``: int8 of ``shape``. Raises EngineError where the bytes are not those of so many values."""
    codes = unpack(packed[None], math.prod(shape), bits)[0].to(torch.int8)
    return torch.where(codes >= 2 ** (bits - 1), codes - 2**bits, codes).to(torch.int8).reshape(shape)
