"""Grids and rounding against float64 arithmetic."""

import itertools
import math

import numpy as np
import pytest
import torch

from engine.errors import EngineError
from engine.numerics.packing import pack_nibbles, unpack_nibbles
from engine.numerics.qparams import QParams, affine, dequantize, quantize
from engine.numerics.sqnr import sqnr_db

RANGES = [
    (-1.0, 1.0),
    (0.0, 6.0),
    (-3.0, 0.0),
    (2.0, 5.0),
    (-7.0, -4.0),
    (-0.3, 11.7),
    (-1e-6, 2e-6),
    (-4e4, 1e5),
    (-1e-3, 40.0),
    (-3e38, 3e38),
]
BITS = range(2, 9)


@pytest.mark.parametrize(("ends", "bits"), list(itertools.product(RANGES, BITS)))
def test_affine_covers_the_range_and_zero(ends, bits):
    low, high = min(ends[0], 0.0), max(ends[1], 0.0)
    q = affine(*ends, bits)
    assert q.qmax == 2**bits - 1
    assert q.bits == bits
    assert 0 <= q.zero_point <= q.qmax
    assert float(np.float32(q.scale)) == q.scale
    assert q.scale == pytest.approx((high - low) / q.qmax, rel=1e-6)
    # Rounding the zero point moves the grid by at most half a step.
    assert -q.zero_point * q.scale <= low + 0.5001 * q.scale
    assert (q.qmax - q.zero_point) * q.scale >= high - 0.5001 * q.scale
    assert dequantize(quantize(torch.zeros(1), q), q).item() == 0.0


@pytest.mark.parametrize(("ends", "bits"), list(itertools.product(RANGES, BITS)))
def test_symmetric_has_its_zero_in_the_middle(ends, bits):
    q = affine(*ends, bits, symmetric=True)
    assert q.zero_point == 2 ** (bits - 1)
    slack = 2e-5 * q.scale  # a float32 scale, 128 times
    assert -q.zero_point * q.scale <= ends[0] + slack
    assert (q.qmax - q.zero_point) * q.scale >= ends[1] - slack
    smaller = q.scale * 0.999
    assert -q.zero_point * smaller > ends[0] or (q.qmax - q.zero_point) * smaller < ends[1]


@pytest.mark.parametrize(("low", "high"), [(0.0, 0.0), (1e-45, 1e-45), (-1e-44, 0.0)])
@pytest.mark.parametrize("symmetric", [False, True])
def test_a_degenerate_range_still_gives_a_grid(low, high, symmetric):
    q = affine(low, high, 8, symmetric)
    assert q.scale == 1.0
    assert dequantize(quantize(torch.tensor([0.0, 1e-45]), q), q).tolist() == [0.0, 0.0]


@pytest.mark.parametrize(("low", "high"), [(math.nan, 1.0), (0.0, math.nan), (-math.inf, 1.0), (0.0, math.inf), (math.inf, -math.inf)])
def test_a_range_that_is_not_finite_is_an_error(low, high):
    with pytest.raises(EngineError, match="cannot be quantized") as raised:
        affine(low, high, 8)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(("ends", "bits"), list(itertools.product(RANGES[:-1], BITS)))
def test_quantize_and_dequantize_against_float64(ends, bits):
    q = affine(*ends, bits)
    spread = ends[1] - ends[0]
    x = torch.linspace(ends[0] - spread / 3, ends[1] + spread / 3, 4001)
    exact = x.double() / q.scale + q.zero_point
    got = quantize(x, q)
    assert got.dtype == torch.uint8
    expected = exact.round().clamp(0, q.qmax)
    # Where float32 puts a value on the other side of a tie, either neighbour is right.
    near_tie = ((exact - exact.floor()) - 0.5).abs() < 1e-4
    assert torch.equal(got[~near_tie].double(), expected[~near_tie])
    assert (got.double() - exact.clamp(0, q.qmax)).abs().max() <= 0.5001
    back = dequantize(got, q)
    assert back.dtype == torch.float32
    torch.testing.assert_close(back.double(), (got.double() - q.zero_point) * q.scale, rtol=1e-6, atol=0)
    inside = (exact >= 0) & (exact <= q.qmax)
    assert (back.double() - x.double())[inside].abs().max() <= 0.501 * q.scale


def test_every_integer_round_trips():
    for q in (QParams(0.0371, 91), QParams(3.7e-5, 0, 15), QParams(12.5, 127, 127)):
        every = torch.arange(q.qmax + 1, dtype=torch.uint8)
        assert torch.equal(quantize(dequantize(every, q), q), every)


@pytest.mark.parametrize("shape", [(16,), (15,), (1,), (0,), (3, 5), (2, 3, 3, 3), (4, 1)])
def test_nibbles_round_trip(shape):
    values = ((torch.arange(math.prod(shape)) * 7) % 16 - 8).to(torch.int8).reshape(shape)
    packed = pack_nibbles(values)
    assert packed.dtype == torch.uint8
    assert packed.numel() == -(-values.numel() // 2)
    assert torch.equal(unpack_nibbles(packed, shape), values)


def test_nibbles_have_the_layout_they_are_stored_in():
    assert pack_nibbles(torch.tensor([1, -1, -8, 7, 3], dtype=torch.int8)).tolist() == [0xF1, 0x78, 0x03]


def test_all_pairs_of_nibbles():
    values = torch.cartesian_prod(torch.arange(-8, 8), torch.arange(-8, 8)).to(torch.int8)
    assert torch.equal(unpack_nibbles(pack_nibbles(values), (256, 2)), values)


def test_sqnr():
    assert sqnr_db(100.0, 1.0) == pytest.approx(20.0)
    assert sqnr_db(1.0, 0.0) == math.inf
    assert sqnr_db(0.0, 1.0) < -1000
    assert math.isnan(sqnr_db(math.nan, 1.0))
    assert math.isnan(sqnr_db(1.0, math.inf))
