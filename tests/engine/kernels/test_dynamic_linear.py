"""Linear layers with activations quantized as they come, against the same integers in float64."""

import pytest
import torch

from engine.kernels.dnnl.dynamic import DynamicLinear
from engine.kernels.dnnl.library import path

pytestmark = pytest.mark.skipif(path() is None, reason="onednn-cpu-gomp is not installed")


def layer(out, given, bias):
    g = torch.Generator().manual_seed(3)
    weight = torch.randint(-127, 128, (out, given), generator=g, dtype=torch.int8)
    return weight, torch.rand(out, generator=g) * 0.01 + 1e-4, torch.randn(out, generator=g) if bias else None


def exact(x, weight, scale, bias):
    rows = x.reshape(-1, x.shape[-1]).float()
    step = (rows.abs().amax(1, keepdim=True) / 127).clamp_min(1e-30)
    y = (rows / step).round().double() @ weight.double().T * step.double() * scale.double()
    y = y if bias is None else y + bias.double()
    return y.reshape(*x.shape[:-1], -1)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("out", "given"), [(16, 64), (7, 33), (300, 128)])
def test_rows_by_themselves(out, given, bias):
    parts = layer(out, given, bias)
    run = DynamicLinear(*parts)
    # Another number of rows in between leaves nothing behind.
    for shape in ((1, given), (5, given), (2, 3, given), (1, given), (1, 1, 4, given)):
        x = torch.randn(shape, generator=torch.Generator().manual_seed(len(shape))) * 3
        expected = exact(x, *parts)
        got = run(x)
        assert got.shape == expected.shape and got.dtype == torch.float32
        assert (got.double() - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_a_large_row_does_not_coarsen_the_others():
    parts = layer(16, 64, False)
    x = torch.randn(3, 64, generator=torch.Generator().manual_seed(1))
    alone = DynamicLinear(*parts)(x[:1])
    x[2] *= 1e6
    assert torch.equal(DynamicLinear(*parts)(x)[:1], alone)


def test_rows_of_zeros_and_of_other_layouts():
    weight, scale, bias = layer(16, 64, True)
    run = DynamicLinear(weight, scale, bias)
    assert torch.equal(run(torch.zeros(2, 64)), bias.expand(2, 16))
    x = torch.randn(64, 6, generator=torch.Generator().manual_seed(2)).T
    assert torch.equal(run(x), run(x.contiguous()))
    strided = torch.randn(6, 128, generator=torch.Generator().manual_seed(2))[:, ::2]
    assert torch.equal(run(strided), run(strided.contiguous()))
