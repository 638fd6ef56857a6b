"""The streaming histogram against numpy's on everything at once."""

import math

import numpy as np
import pytest
import torch

from engine.numerics.histogram import BINS, Histogram


def normal(count, scale=1.0, offset=0.0, seed=0):
    return torch.randn(count, generator=torch.Generator().manual_seed(seed)) * scale + offset


STREAMS = {
    "one batch": [normal(5000)],
    "growth up": [normal(2000), normal(2000, 5, 3), normal(2000, 30, 100)],
    "growth down": [normal(2000), normal(2000, 5, -7), normal(2000, 30, -300)],
    "growth both ways": [normal(2000) * s + o for s, o in ((1, 0), (2, 8), (3, -20), (1, 60), (9, -200))],
    "orders of magnitude": [normal(1000, 10.0**k, seed=k + 20) for k in range(-10, 12)],
    "shrinking": [normal(1000, 10.0**-k, seed=k) for k in range(4)],
    "constant, then spread": [torch.full((100,), 5.0), normal(1000, 1, 5)],
    "two constants": [torch.full((100,), 5.0), torch.full((70,), -5.0)],
    "constant": [torch.full((100,), 5.0), torch.full((3,), 5.0)],
    "zeros, then values": [torch.zeros(100), normal(1000), torch.zeros(7)],
    "far from zero": [normal(1000, 0.5, 1000), normal(1000, 0.5, 1001)],
    "on bin edges": [torch.arange(-64, 64).float() / 16, torch.arange(-640, 640).float() / 16],
    "tiny": [normal(1000, 1e-20), normal(1000, 1e-18)],
    "huge": [normal(1000, 1e30), torch.tensor([3.4e38, -3.4e38, 0.0])],
    "beside an edge": [torch.tensor([-1e-7, 0.0, 1e-7, 7.9999995, 8.0, -8.0]), normal(1000)],
    "many": [normal(300_000).relu(), normal(300_000, 3)],
    "shapes and dtypes": [normal(24).reshape(2, 3, 4), normal(16, 4).double().reshape(4, 4), normal(1)[0].reshape(())],
}


@pytest.mark.parametrize("name", STREAMS)
def test_merging_is_exact(name):
    seen = Histogram()
    for batch in STREAMS[name]:
        seen.update(batch)
    everything = np.concatenate([batch.double().numpy().ravel() for batch in STREAMS[name]])
    edges = (np.arange(BINS + 1) + seen.first) * seen.width
    expected, _ = np.histogram(everything, edges)
    assert expected.sum() == len(everything)
    assert np.array_equal(seen.counts.numpy(), expected)
    assert (seen.low, seen.high) == (everything.min(), everything.max())
    assert np.allclose(seen.centres().numpy(), (edges[1:] + edges[:-1]) / 2)
    assert math.frexp(seen.width)[0] == 0.5


@pytest.mark.parametrize("name", STREAMS)
@pytest.mark.parametrize("bins", [1, 64])
def test_fewer_bins_hold_the_same_values(name, bins):
    """Each edge has as many values below it as it should, give or take what the bin that it cuts holds."""
    seen = Histogram()
    for batch in STREAMS[name]:
        seen.update(batch)
    counts = seen.over(seen.low, seen.high, bins)
    everything = np.sort(np.concatenate([batch.double().numpy().ravel() for batch in STREAMS[name]]))
    assert len(counts) == bins and sum(counts) == len(everything)
    assert all(type(count) is int and count >= 0 for count in counts)
    for edge, below in zip(np.linspace(seen.low, seen.high, bins + 1)[1:-1], np.cumsum(counts)[:-1], strict=True):
        nearest = [np.searchsorted(everything, edge + shift) for shift in (-seen.width, seen.width)]
        assert nearest[0] - 1 <= below <= nearest[1] + 1


def test_bins_that_fit_are_merged_exactly():
    seen = Histogram()
    seen.update(torch.arange(0, 1024).float() / 16)
    assert seen.over(0.0, 64.0, 64) == (16,) * 64
    assert seen.over(16.0, 48.0, 2) == (512, 512)
    assert seen.over(-64.0, 64.0, 4) == (0, 0, 512, 512)


def test_without_a_range_the_first_bin_holds_all():
    seen = Histogram()
    assert seen.over(math.inf, -math.inf, 4) == (0, 0, 0, 0)
    seen.update(torch.full((7,), 3.0))
    assert seen.over(3.0, 3.0, 4) == (7, 0, 0, 0)


@pytest.mark.parametrize("name", ["growth up", "growth both ways", "orders of magnitude", "huge"])
def test_bins_stay_fine(name):
    """The range takes a fair share of the bins, however it grew."""
    seen = Histogram()
    for batch in STREAMS[name]:
        seen.update(batch)
    assert (seen.high - seen.low) / seen.width >= BINS / 8


def test_memory_does_not_grow():
    seen = Histogram()
    for k in range(50):
        seen.update(normal(1000, 1.5**k, seed=k))
        assert seen.counts.shape == (BINS,)
    held = {name: value for name, value in vars(seen).items() if isinstance(value, torch.Tensor)}
    assert list(held) == ["counts"]
    assert seen.counts.sum() == 50_000


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("position", [0, 1, 2])
def test_what_is_not_finite_is_remembered(bad, position):
    batches = [normal(100, seed=i) for i in range(3)]
    batches[position][5] = bad
    seen = Histogram()
    for batch in batches:
        seen.update(batch)
    assert not (math.isfinite(seen.low) and math.isfinite(seen.high))


def test_the_given_tensor_is_left_alone():
    x = normal(100)
    kept = x.clone()
    Histogram().update(x)
    assert torch.equal(x, kept)
