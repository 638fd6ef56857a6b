from __future__ import annotations

import pytest
import torch

from engine.errors import EngineError
from engine.numerics.packing import pack, pack_nibbles, packed_width, unpack


def bits_of(packed: torch.Tensor, columns: int, bits: int) -> list[list[int]]:
    """The values of each row, read from one long Python integer."""
    rows = [int.from_bytes(bytes(row), "little") for row in packed.tolist()]
    return [[(row >> (bits * i)) & (2**bits - 1) for i in range(columns)] for row in rows]


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("columns", [1, 7, 8, 9, 64, 101])
def test_values_come_back_and_lie_as_a_little_endian_bit_string(bits: int, columns: int) -> None:
    codes = torch.randint(0, 2**bits, (5, columns), dtype=torch.uint8)
    packed = pack(codes, bits)
    assert packed.shape == (5, packed_width(columns, bits)) and packed.shape[1] == (columns * bits + 7) // 8
    assert torch.equal(unpack(packed, columns, bits), codes)
    assert bits_of(packed, columns, bits) == codes.tolist()


def test_nibbles_lie_as_elsewhere_in_the_engine() -> None:
    codes = torch.randint(0, 16, (4, 32), dtype=torch.uint8)
    assert torch.equal(pack(codes, 4).flatten(), pack_nibbles(codes.to(torch.int8)))


def test_eight_values_of_three_bits_fill_three_bytes() -> None:
    packed = pack(torch.tensor([[1, 2, 3, 4, 5, 6, 7, 0]], dtype=torch.uint8), 3)
    assert packed.tolist() == [list((0b000_111_110_101_100_011_010_001).to_bytes(3, "little"))]


@pytest.mark.parametrize("packed", [torch.zeros(2, 5, dtype=torch.uint8), torch.zeros(2, 4), torch.zeros(8, dtype=torch.uint8)])
def test_bytes_of_another_shape_are_refused(packed: torch.Tensor) -> None:
    with pytest.raises(EngineError, match="damaged"):
        unpack(packed, 8, 4)
