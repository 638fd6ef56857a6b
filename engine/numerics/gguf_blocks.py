"""GGUF's blocks as bytes: the layouts of ``ggml-common.h`` (llama.cpp), which ``gguf.quants`` describes in Python.

A block holds the weights of one row in order. Scales and offsets are little-endian float16; codes lie in planes, so that one byte holds
codes that are 16 to 128 places apart.
"""

from __future__ import annotations

import torch
from torch import Tensor

from engine.errors import EngineError
from engine.numerics.formats import NumberFormat


def to_blocks(
    form: NumberFormat, codes: Tensor, scale: Tensor, offset: Tensor | None, multiplier: Tensor | None, offset_multiplier: Tensor | None
) -> Tensor:
    """uint8 (rows, bytes a row) of codes (rows, inputs) that lie as ``QTensor`` has them. A row that ends within a block is filled up
    with zeros."""
    assert form.layout is not None
    rows, weights = len(codes), form.layout.weights
    blocks = _filled(codes, weights).reshape(-1, weights)
    parts = {"d": _halves(scale), "m": None if offset is None else _halves(-offset if multiplier is None else offset)}
    groups = weights // form.block
    scales = None if multiplier is None else _filled(multiplier, groups).reshape(-1, groups).to(torch.int16)
    minima = None if offset_multiplier is None else _filled(offset_multiplier, groups).reshape(-1, groups).to(torch.uint8)
    return torch.cat(_WRITERS[form.name](blocks.to(torch.uint8), parts["d"], parts["m"], scales, minima), 1).reshape(rows, -1)


def from_blocks(form: NumberFormat, packed: Tensor, inputs: int) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """The inverse of ``to_blocks``: codes, scale, offset, multiplier and offset_multiplier of rows of ``inputs`` weights. Raises
    EngineError where the bytes are not those of such rows."""
    assert form.layout is not None
    layout, groups = form.layout, form.layout.weights // form.block
    count = -(-inputs // layout.weights)
    if packed.dtype != torch.uint8 or packed.dim() != 2 or packed.shape[1] != count * layout.size:
        raise EngineError(
            f"blocks of {form.name} of shape {tuple(packed.shape)} do not hold {inputs} weights a row: "
            "the file is damaged; quantize the model again"
        )
    rows, blocks = len(packed), packed.reshape(-1, layout.size)
    codes, d, m, scales, minima = _READERS[form.name](blocks)
    if bool((codes.to(torch.int16) >= len(form.levels)).any()):
        raise EngineError(f"blocks of {form.name} hold -128, which the format here has not: quantize the model again")
    kept = -(-inputs // form.block)
    offset = None if m is None else m.reshape(rows, count) * (-1 if scales is None else 1)
    return (
        codes.reshape(rows, -1)[:, :inputs].contiguous(), d.reshape(rows, count), offset,
        None if scales is None else scales.reshape(rows, count * groups)[:, :kept].to(torch.int8).contiguous(),
        None if minima is None else minima.reshape(rows, count * groups)[:, :kept].to(torch.int8).contiguous(),
    )  # fmt: skip


def _filled(rows: Tensor, whole: int) -> Tensor:
    return torch.nn.functional.pad(rows, (0, -rows.shape[1] % whole))


def _halves(values: Tensor) -> Tensor:
    """(blocks, 2) bytes of float16."""
    return values.to(torch.float16).contiguous().view(torch.uint8).reshape(-1, 2)


def _floats(stored: Tensor) -> Tensor:
    return stored.contiguous().view(torch.float16)


def planes(values: Tensor, bits: int, run: int) -> Tensor:
    """Values below ``2**bits`` (blocks, n) into bytes: of each ``8 / bits`` runs of ``run`` values the first in the lowest bits."""
    parts = values.reshape(len(values), -1, 8 // bits, run)
    shifts = torch.arange(0, 8, bits, dtype=torch.uint8)[:, None]
    return (parts << shifts).sum(2, dtype=torch.uint8).reshape(len(values), -1)


def from_planes(stored: Tensor, bits: int, run: int) -> Tensor:
    """The inverse of ``planes``: (blocks, values)."""
    shifts = torch.arange(0, 8, bits, dtype=torch.uint8)[:, None]
    return ((stored.reshape(len(stored), -1, 1, run) >> shifts) & ((1 << bits) - 1)).reshape(len(stored), -1)


def _sixes(scales: Tensor, minima: Tensor) -> Tensor:
    """Eight scales and eight offsets of 6 bits in 12 bytes, as Q4_K and Q5_K have them."""
    low, high = torch.cat([scales[:, :4], minima[:, :4]], 1), torch.cat([scales[:, 4:], minima[:, 4:]], 1)
    return torch.cat([low | ((high >> 4) << 6), (scales[:, 4:] & 15) | ((minima[:, 4:] & 15) << 4)], 1)


def _from_sixes(stored: Tensor) -> tuple[Tensor, Tensor]:
    first, second, third = stored[:, :4], stored[:, 4:8], stored[:, 8:]
    scales = torch.cat([first & 63, (third & 15) | ((first >> 6) << 4)], 1)
    return scales, torch.cat([second & 63, (third >> 4) | ((second >> 6) << 4)], 1)


def _bits(values: Tensor) -> Tensor:
    """32 values below 2 (blocks, 32) into four bytes, the first in the lowest bit."""
    return (values.reshape(len(values), 4, 8) << torch.arange(8, dtype=torch.uint8)).sum(2, dtype=torch.uint8)


def _from_bits(stored: Tensor) -> Tensor:
    return ((stored[:, :, None] >> torch.arange(8, dtype=torch.uint8)) & 1).reshape(len(stored), -1)


Parts = tuple[Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None]


def _write_32(bits: int):  # type: ignore[no-untyped-def]
    def write(codes: Tensor, d: Tensor, m: Tensor | None, scales: None, minima: None) -> list[Tensor]:
        head = [d] if m is None else [d, m]
        if bits == 8:
            return [*head, (codes.to(torch.int16) - 127).to(torch.int8).view(torch.uint8)]
        return [*head, *([_bits(codes >> 4)] if bits == 5 else []), planes(codes & 15, 4, 16)]

    return write


def _read_32(bits: int, offset: bool):  # type: ignore[no-untyped-def]
    def read(blocks: Tensor) -> Parts:
        d, rest = _floats(blocks[:, :2]), blocks[:, 2:]
        m, rest = (_floats(rest[:, :2]), rest[:, 2:]) if offset else (None, rest)
        if bits == 8:
            return (rest.contiguous().view(torch.int8).to(torch.int16) + 127).to(torch.uint8), d, m, None, None
        if bits == 4:
            return from_planes(rest, 4, 16), d, m, None, None
        return from_planes(rest[:, 4:], 4, 16) | (_from_bits(rest[:, :4]) << 4), d, m, None, None

    return read


def _write_q2(codes: Tensor, d: Tensor, m: Tensor, scales: Tensor, minima: Tensor) -> list[Tensor]:
    return [scales.to(torch.uint8) | (minima << 4), planes(codes, 2, 32), d, m]


def _read_q2(blocks: Tensor) -> Parts:
    scales, d, m = blocks[:, :16], _floats(blocks[:, 80:82]), _floats(blocks[:, 82:])
    return from_planes(blocks[:, 16:80], 2, 32), d, m, scales & 15, scales >> 4


def _write_q3(codes: Tensor, d: Tensor, m: None, scales: Tensor, minima: None) -> list[Tensor]:
    moved = (scales + 32).to(torch.uint8)
    low = (moved[:, :8] & 15) | ((moved[:, 8:] & 15) << 4)
    # The high bit of a code tells that nothing is subtracted.
    return [planes(codes >> 2, 1, 32), planes(codes & 3, 2, 32), low, planes(moved >> 4, 2, 4), d]


def _read_q3(blocks: Tensor) -> Parts:
    low, high = blocks[:, 96:104], from_planes(blocks[:, 104:108], 2, 4)
    scales = torch.cat([low & 15, low >> 4], 1) | (high << 4)
    codes = from_planes(blocks[:, 32:96], 2, 32) | (from_planes(blocks[:, :32], 1, 32) << 2)
    return codes, _floats(blocks[:, 108:]), None, scales.to(torch.int16) - 32, None


def _write_q4(codes: Tensor, d: Tensor, m: Tensor, scales: Tensor, minima: Tensor) -> list[Tensor]:
    return [d, m, _sixes(scales.to(torch.uint8), minima), planes(codes, 4, 32)]


def _read_q4(blocks: Tensor) -> Parts:
    return from_planes(blocks[:, 16:], 4, 32), _floats(blocks[:, :2]), _floats(blocks[:, 2:4]), *_from_sixes(blocks[:, 4:16])


def _write_q5(codes: Tensor, d: Tensor, m: Tensor, scales: Tensor, minima: Tensor) -> list[Tensor]:
    return [d, m, _sixes(scales.to(torch.uint8), minima), planes(codes >> 4, 1, 32), planes(codes & 15, 4, 32)]


def _read_q5(blocks: Tensor) -> Parts:
    codes = from_planes(blocks[:, 48:], 4, 32) | (from_planes(blocks[:, 16:48], 1, 32) << 4)
    return codes, _floats(blocks[:, :2]), _floats(blocks[:, 2:4]), *_from_sixes(blocks[:, 4:16])


def _write_q6(codes: Tensor, d: Tensor, m: None, scales: Tensor, minima: None) -> list[Tensor]:
    return [planes(codes & 15, 4, 64), planes(codes >> 4, 2, 32), scales.to(torch.int8).view(torch.uint8), d]


def _read_q6(blocks: Tensor) -> Parts:
    codes = from_planes(blocks[:, :128], 4, 64) | (from_planes(blocks[:, 128:192], 2, 32) << 4)
    return codes, _floats(blocks[:, 208:]), None, blocks[:, 192:208].contiguous().view(torch.int8), None


_WRITERS = {
    "q8_0": _write_32(8), "q4_0": _write_32(4), "q4_1": _write_32(4), "q5_0": _write_32(5), "q5_1": _write_32(5), "q6_k": _write_q6,
    "q5_k": _write_q5, "q4_k": _write_q4, "q3_k": _write_q3, "q2_k": _write_q2,
}  # fmt: skip
_READERS = {
    "q8_0": _read_32(8, False), "q4_0": _read_32(4, False), "q4_1": _read_32(4, True), "q5_0": _read_32(5, False),
    "q5_1": _read_32(5, True), "q6_k": _read_q6, "q5_k": _read_q5, "q4_k": _read_q4, "q3_k": _read_q3, "q2_k": _read_q2,
}  # fmt: skip
