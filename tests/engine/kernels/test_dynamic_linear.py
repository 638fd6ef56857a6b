"""Linear layers with activations quantized as they come, against the same integers in float64."""

import os
import subprocess
import sys

import pytest
import torch

from engine.kernels.dnnl.dynamic import DynamicLinear
from engine.kernels.dnnl.library import path
from engine.kernels.probe import probe

pytestmark = pytest.mark.skipif(path() is None, reason="onednn-cpu-gomp is not installed")


def layer(out, given, bias):
    g = torch.Generator().manual_seed(3)
    weight = torch.randint(-127, 128, (out, given), generator=g, dtype=torch.int8)
    return weight, torch.rand(out, generator=g) * 0.01 + 1e-4, torch.randn(out, generator=g) if bias else None


def exact(x, weight, scale, bias, top=127):
    rows = x.reshape(-1, x.shape[-1]).float()
    step = (rows.abs().amax(1, keepdim=True) / top).clamp_min(1e-30)
    y = (rows / step).round().double() @ weight.double().T * step.double() * scale.double()
    y = y if bias is None else y + bias.double()
    return y.reshape(*x.shape[:-1], -1)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("out", "given"), [(16, 64), (7, 33), (300, 128)])
def test_rows_by_themselves(out, given, bias):
    # What this processor multiplies without saturating.
    parts, bits = layer(out, given, bias), probe().activation_bits
    run = DynamicLinear(*parts, bits=bits)
    # Another number of rows in between leaves nothing behind.
    for shape in ((1, given), (5, given), (2, 3, given), (1, given), (1, 1, 4, given)):
        x = torch.randn(shape, generator=torch.Generator().manual_seed(len(shape))) * 3
        expected = exact(x, *parts, top=2 ** (bits - 1) - 1)
        got = run(x)
        assert got.shape == expected.shape and got.dtype == torch.float32
        assert (got.double() - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_a_large_row_does_not_coarsen_the_others():
    parts = layer(16, 64, False)
    x = torch.randn(3, 64, generator=torch.Generator().manual_seed(1))
    alone = DynamicLinear(*parts)(x[:2])
    x[2] *= 1e6
    assert torch.equal(DynamicLinear(*parts)(x)[:2], alone)


@pytest.mark.parametrize("bits", [8, 7, 4])
def test_fewer_bits(bits):
    if bits > probe().activation_bits:
        pytest.skip("sums of 8-bit products saturate on this processor")
    parts, x = layer(24, 96, True), torch.randn(3, 96, generator=torch.Generator().manual_seed(4))
    run, expected = DynamicLinear(*parts, bits=bits), exact(x, *parts, top=2 ** (bits - 1) - 1)
    for rows in (x, x[:1], x[2:]):
        wanted = expected[[i for i in range(3) if any(torch.equal(x[i], row) for row in rows)]]
        assert (run(rows).double() - wanted).abs().max() <= 1e-5 * expected.abs().max()


def test_seven_bits_are_exact_without_vnni():
    """Where two products are added in 16 bits: oneDNN is held to such instructions in a process of its own."""
    code = """
import torch
from engine.kernels.dnnl.dynamic import DynamicLinear
for top in (127, -128):
    run = DynamicLinear(torch.full((16, 256), top, dtype=torch.int8), torch.ones(16), None, bits=7)
    for sign in (1.0, -1.0):
        for rows in (1, 3):
            y = run(torch.full((rows, 256), sign))
            assert torch.allclose(y, torch.full_like(y, sign * top * 256), rtol=1e-6), (top, sign, rows, y)
"""
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_what_is_not_a_number_stays_so():
    run = DynamicLinear(*layer(16, 64, True))
    x = torch.ones(2, 64)
    x[1, 3] = float("nan")
    assert run(x)[1].isnan().all() and run(x[1:]).isnan().all() and run(x)[0].isfinite().all()


def test_rows_of_zeros_and_of_other_layouts():
    weight, scale, bias = layer(16, 64, True)
    run = DynamicLinear(weight, scale, bias)
    assert torch.equal(run(torch.zeros(2, 64)), bias.expand(2, 16))
    x = torch.randn(64, 6, generator=torch.Generator().manual_seed(2)).T
    assert torch.equal(run(x), run(x.contiguous()))
    strided = torch.randn(6, 128, generator=torch.Generator().manual_seed(2))[:, ::2]
    assert torch.equal(run(strided), run(strided.contiguous()))


@pytest.mark.parametrize(("out", "given"), [(16, 64), (7, 33), (300, 128), (130, 100)])
def test_rows_are_read_back_from_the_layout(out, given):
    weight, scale, _ = layer(out, given, False)
    look = DynamicLinear(weight, scale, None).rows(weight)
    # Other instructions have other layouts, which need not be known.
    assert look is not None or not probe().vnni
    assert look is None or torch.equal(look(torch.arange(out)), weight)
    # Another weight is not there.
    assert DynamicLinear(weight, scale, None).rows(weight.roll(1, 0)) is None
