"""Tensors read as they lie in memory."""

import pytest
import torch

from engine.numerics.memory import as_it_lies

SHAPES = [(), (5,), (2, 3), (2, 3, 4), (2, 3, 4, 5), (1, 3, 4, 1), (2, 3, 2, 4, 5)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("turn", [False, True])
def test_a_dense_tensor_is_viewed(shape, turn):
    x = torch.randn(shape)
    x = x.movedim(1, -1) if turn and len(shape) > 1 else x
    if len(shape) == 4 and not turn:
        x = x.contiguous(memory_format=torch.channels_last)
    flat = as_it_lies(x)
    assert flat.dim() == 1 and flat.is_contiguous()
    assert flat.data_ptr() == x.data_ptr()
    assert torch.equal(flat.sort().values, x.flatten().sort().values)


def test_gaps_are_left_out():
    x = torch.arange(24.0).reshape(2, 3, 4)[:, ::2]
    assert sorted(as_it_lies(x).tolist()) == sorted(x.flatten().tolist())
