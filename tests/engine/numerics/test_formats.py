"""Number formats against exact fractions, and against bytes that are put together by hand."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch

from engine.errors import EngineError, UsageError
from engine.numerics.formats import FORMATS, NumberFormat, integer, round_to, round_to_

# The sixteen values of MXFP4's elements by their bits: sign, two of exponent, one of mantissa (OCP Microscaling Formats 1.0, table 4).
E2M1 = NumberFormat("e2m1", 4, torch.uint8, -6.0, 6.0, block=32, levels=tuple(
    (-1) ** (code >> 3) * ((code & 1) * 0.5 if (code >> 1) & 3 == 0 else 2.0 ** (((code >> 1) & 3) - 1) * (1 + (code & 1) / 2))
    for code in range(16)
))  # fmt: skip


def half_even(value: Fraction) -> int:
    return round(value)


INTEGERS = [form for form in FORMATS.values() if not form.levels]


@pytest.mark.parametrize("form", INTEGERS, ids=lambda form: form.name)
def test_integers_are_rounded_as_exact_arithmetic_rounds_them(form: NumberFormat) -> None:
    low, high = (0, 2**form.bits - 1) if form.affine else (-(2 ** (form.bits - 1)), 2 ** (form.bits - 1) - 1)
    values = torch.cat([torch.arange(-600, 601) / 2, torch.randn(200) * form.high])
    zero = 3.0 if form.affine else None
    kept = values.clone()
    got = form.round(values, zero)
    wanted = [min(max(half_even(Fraction(value)) + (3 if form.affine else 0), low), high) for value in values.tolist()]
    assert got.tolist() == wanted and torch.equal(values, kept)
    assert (form.low, form.high) == (low, high)
    codes = form.encode(got)
    assert codes.dtype == form.storage and torch.equal(form.decode(codes), got)
    assert form.round_(values, zero) is values and values.tolist() == wanted


@pytest.mark.parametrize("form", INTEGERS, ids=lambda form: form.name)
def test_packed_codes_are_a_little_endian_bit_string_from_the_least_code(form: NumberFormat) -> None:
    codes = torch.randint(int(form.low), int(form.high) + 1, (3, 13), dtype=torch.int16).to(form.storage)
    packed = form.pack(codes)
    for row, stored in zip(codes.tolist(), packed.tolist(), strict=True):
        bits = sum((code - int(form.low)) << (form.bits * place) for place, code in enumerate(row))
        assert bytes(stored) == bits.to_bytes((13 * form.bits + 7) // 8, "little")
    assert packed.shape[1] == form.packed_width(13)
    back = form.unpack(packed, 13)
    assert torch.equal(back, codes) and back.dtype == form.storage
    with pytest.raises(EngineError, match="damaged"):
        form.unpack(packed, 64)


def test_a_format_of_listed_values_takes_the_nearest_and_halves_to_the_even_code() -> None:
    assert E2M1.levels[:8] == (0, 0.5, 1, 1.5, 2, 3, 4, 6)
    # Halves lie between an odd and an even mantissa; the even one wins, as in IEEE 754.
    halves = {0.25: 0.0, 0.75: 1.0, 1.25: 1.0, 1.75: 2.0, 2.5: 2.0, 3.5: 4.0, 5.0: 4.0}
    values = torch.tensor([*halves, *(-value for value in halves), 5.1, 99.0, -99.0, 2.4, 0.26, -0.1])
    wanted = torch.tensor([*halves.values(), *(-value for value in halves.values()), 6.0, 6.0, -6.0, 2.0, 0.5, 0.0])
    assert torch.equal(E2M1.round(values), wanted)
    grid = torch.linspace(-7, 7, 2001)
    nearest = (grid[:, None] - torch.tensor(sorted(set(E2M1.levels)))).abs().amin(1)
    assert torch.equal((E2M1.round(grid) - grid).abs(), nearest)


def test_codes_of_listed_values_come_back_from_bytes() -> None:
    codes = E2M1.encode(E2M1.round(torch.randn(4, 9) * 3))
    assert torch.equal(E2M1.unpack(E2M1.pack(codes), 9), codes)
    assert E2M1.decode(torch.tensor([1, 7, 9, 15])).tolist() == [0.5, 6.0, -0.5, -6.0]
    with pytest.raises(ValueError, match="no zero point"):
        E2M1.round(torch.zeros(1), 1.0)


def test_rounding_in_place_and_not_is_the_same() -> None:
    values = torch.linspace(-9, 9, 77)
    kept = values.clone()
    got = round_to(values, -3, 4, 2)
    assert torch.equal(values, kept) and torch.equal(got, round_to_(values, -3, 4, 2))
    assert got.tolist() == [min(max(half_even(Fraction(value)) + 2, -3), 4) for value in kept.tolist()]


@pytest.mark.parametrize("bits", [1, 9, 0])
def test_other_widths_are_refused(bits: int) -> None:
    with pytest.raises(UsageError, match=f"{bits} bits"):
        integer(bits)
