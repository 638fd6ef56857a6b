"""Compiled products of a few rows, against float64, over bits, groups, sizes, rows and threads."""

import itertools

import pytest
import torch

from engine.kernels.jit.compiler import missing
from engine.kernels.matrix.streamed import Int4, Int8, Streamed
from engine.kernels.matrix.weight_only import ROWS
from engine.numerics.scheme import int_scheme
from engine.numerics.weights import minmax, quantize

pytest.importorskip("llvmlite")
pytestmark = pytest.mark.skipif(missing() is not None, reason="oneDNN, whose threads the kernels use, is not installed")


@pytest.fixture(params=[1, 2], ids=["1 thread", "2 threads"])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def drawn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def allowed(x, weight, size):
    """What inputs of 16 bits in each group, and sums in float32, may move a result by."""
    step = x.double().abs().unflatten(-1, (-1, size)).amax(-1) / 32767
    moved = step.repeat_interleave(size, -1) @ weight.abs().T / 2
    return moved + 1e-5 * (x.double().abs() @ weight.abs().T)


@pytest.mark.parametrize(("out", "inputs"), [(1, 16), (7, 48), (33, 100), (64, 2048)])
def test_int8_is_exact_to_float32(out, inputs, threads):
    weight = quantize(drawn(out, inputs), minmax(drawn(out, inputs), int_scheme(8, 0, True)))
    bias, exact = drawn(out), weight.dequantize().double()
    for rows, bias in itertools.product((1, 2, 5, ROWS, ROWS + 3), (None, drawn(out))):
        x = drawn(rows, inputs, seed=3)
        wanted = x.double() @ exact.T + (0 if bias is None else bias.double())
        slack = 1e-5 * (x.double().abs() @ exact.abs().T + 1)
        assert ((Int8(weight, bias)(x).double() - wanted).abs() <= slack).all()


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize(("out", "inputs", "size"), [(1, 32, 32), (7, 96, 32), (33, 192, 64), (5, 1024, 256), (64, 256, 0)])
def test_int4_is_exact_to_16_bits_of_its_inputs(bits, symmetric, out, inputs, size, threads):
    floats = drawn(out, inputs)
    weight = quantize(floats, minmax(floats, int_scheme(bits, size, symmetric)))
    # What the kernel holds: steps and offsets in bfloat16.
    held = Streamed().computed(weight).double()
    for rows, bias in itertools.product((1, 3, ROWS, ROWS + 3), (None, drawn(out))):
        x = drawn(rows, inputs, seed=3)
        x[:, 0] *= 100
        wanted = x.double() @ held.T + (0 if bias is None else bias.double())
        assert ((Int4(weight, bias)(x).double() - wanted).abs() <= allowed(x, held, 256 if size == 0 else size) + 1e-5).all()


def test_leading_dimensions_and_strides_are_those_of_the_inputs():
    floats = drawn(24, 64)
    weight = quantize(floats, minmax(floats, int_scheme(4, 32, False)))
    x = drawn(2, 64, 3).transpose(1, 2)
    y = Int4(weight, None)(x)
    assert y.shape == (2, 3, 24)
    assert torch.equal(y, Int4(weight, None)(x.contiguous()))


def test_what_is_not_a_number_stays_so_in_its_row_alone():
    floats = drawn(24, 64)
    for form in (Int4(quantize(floats, minmax(floats, int_scheme(4, 32, False))), None),
                 Int8(quantize(floats, minmax(floats, int_scheme(8, 0, True))), None)):  # fmt: skip
        x = drawn(3, 64)
        x[1, 5] = float("nan")
        y = form(x)
        assert y[1].isnan().all()
        assert y[[0, 2]].isfinite().all()


def test_a_row_of_zeros_gives_the_bias():
    floats, bias = drawn(24, 64), drawn(24)
    weight = quantize(floats, minmax(floats, int_scheme(4, 64, False)))
    assert torch.equal(Int4(weight, bias)(torch.zeros(1, 64))[0], bias)
