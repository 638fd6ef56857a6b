"""Integer max pooling is torch's, on every geometry."""

import itertools

import pytest
import torch
import torch.nn.functional as F

from engine.lowering.graph.pool import max_pool2d

KERNELS = [(1, 1), (2, 2), (3, 3), (2, 3), (5, 1)]
STRIDES = [(1, 1), (2, 2), (3, 1), (2, 3)]
SIZES = [(7, 7), (8, 5), (13, 6), (9, 16)]


@pytest.mark.parametrize(("kernel", "stride"), list(itertools.product(KERNELS, STRIDES)))
@pytest.mark.parametrize("ceil_mode", [False, True])
def test_equals_torch(kernel, stride, ceil_mode):
    paddings = {(0, 0), (kernel[0] // 2, kernel[1] // 2), (0, kernel[1] // 2)}
    g = torch.Generator().manual_seed(0)
    checked = 0
    for padding, dilation, size in itertools.product(sorted(paddings), [(1, 1), (2, 2), (1, 3)], SIZES):
        span = [s + 2 * p - d * (k - 1) for s, p, d, k in zip(size, padding, dilation, kernel, strict=True)]
        if min(span) < 1:
            continue
        x = torch.randint(0, 256, (2, 3, *size), generator=g, dtype=torch.uint8)
        expected = F.max_pool2d(x.double(), kernel, stride, padding, dilation, ceil_mode)
        for layout in (torch.contiguous_format, torch.channels_last):
            given = x.clone(memory_format=layout)
            got = max_pool2d(given, kernel, stride, padding, dilation, ceil_mode)
            assert got.dtype == torch.uint8
            assert torch.equal(got.double(), expected), (padding, dilation, size, layout)
            assert torch.equal(given, x)
            checked += 1
    assert checked >= 20


@pytest.mark.parametrize("batch", [1, 5])
def test_batches_and_layout(batch):
    x = torch.randint(0, 256, (batch, 4, 8, 8), dtype=torch.uint8).to(memory_format=torch.channels_last)
    got = max_pool2d(x, (2, 2), (2, 2), (0, 0), (1, 1), False)
    assert got.shape == (batch, 4, 4, 4)
    assert got.is_contiguous(memory_format=torch.channels_last)


def test_padding_never_wins_and_zero_is_allowed():
    x = torch.zeros(1, 1, 3, 3, dtype=torch.uint8)
    assert not max_pool2d(x, (3, 3), (1, 1), (1, 1), (1, 1), False).any()
