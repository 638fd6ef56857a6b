"""Ranges from one pass, against the same question asked of all the data at once."""

import math

import numpy as np
import pytest
import torch

from engine.errors import EngineError
from engine.numerics.observers import HistogramMSE, MinMax, MovingAverage, observer, settled
from engine.recipe.spec import ActivationSpec

NAMES = ["minmax", "moving-average", "percentile", "histogram-mse", "entropy"]


def uniform(count, seed=0):
    return torch.rand(count, generator=torch.Generator().manual_seed(seed)) * 0.999998 + 1e-6


def normal(count, seed=0):
    return torch.randn(count, generator=torch.Generator().manual_seed(seed))


def laplace(count, seed=0):
    return torch.distributions.Laplace(0.0, 1.0).icdf(uniform(count, seed))


DATA = {
    "gauss": normal(20_000),
    "relu": normal(20_000).relu(),
    "laplace": laplace(20_000),
    "relu of laplace": laplace(20_000).relu(),
    "shifted": normal(20_000) * 0.5 + 1,
    "negative": -normal(20_000).relu(),
    "outlier": torch.cat([normal(20_000).relu(), torch.tensor([60.0])]),
}


def seen_by(name, data, batches=7):
    made = observer(ActivationSpec(observer=name))
    for part in data.chunk(batches):
        made.update(part)
    return made


def squared_error(x, low, high, bits):
    """Of rounding x on the affine grid over [low, high], in float64."""
    step = (high - low) / (2**bits - 1)
    zero = round(-low / step)
    return ((np.clip(np.round(x / step) + zero, 0, 2**bits - 1) - zero) * step - x).__pow__(2).mean()


def test_minmax_and_moving_average():
    batches = [normal(100, seed=i) * (i + 1) for i in range(5)]
    plain, average = MinMax(), MovingAverage()
    for batch in batches:
        plain.update(batch)
        average.update(batch)
    assert plain.range(8) == (min(b.min().item() for b in batches), max(b.max().item() for b in batches))
    low, high = batches[0].min().item(), batches[0].max().item()
    for batch in batches[1:]:
        low, high = 0.9 * low + 0.1 * batch.min().item(), 0.9 * high + 0.1 * batch.max().item()
    assert average.range(8) == pytest.approx((low, high))


@pytest.mark.parametrize("name", NAMES)
def test_the_extremes_are_of_all_values(name):
    made = observer(ActivationSpec(observer=name))
    assert made.extremes == (math.inf, -math.inf)
    batches = [normal(1000, seed=i) * (5 - i) for i in range(4)]
    for batch in batches:
        made.update(batch)
    assert made.extremes == (min(b.min().item() for b in batches), max(b.max().item() for b in batches))
    made.update(torch.tensor([math.nan, 1.0]))
    made.update(torch.ones(3))
    assert all(map(math.isnan, made.extremes))


@pytest.mark.parametrize("name", DATA)
def test_percentile_is_numpys_within_a_bin(name):
    data = torch.cat([DATA[name], DATA[name][:9_011]])
    made = seen_by("percentile", data)
    low, high = made.range(8)
    width = made.histogram.width
    assert low == pytest.approx(np.quantile(data.double(), 1e-4, method="inverted_cdf"), abs=width)
    assert high == pytest.approx(np.quantile(data.double(), 1 - 1e-4, method="inverted_cdf"), abs=width)


@pytest.mark.parametrize("name", DATA)
@pytest.mark.parametrize("bits", [2, 4, 7, 8])
def test_mse_clip_against_a_search_over_the_raw_data(name, bits):
    data = DATA[name][::5] if name != "outlier" else DATA[name][-4000:]
    x = data.double().numpy()
    got = seen_by("histogram-mse", data).range(bits)
    low, high = min(x.min(), 0.0), max(x.max(), 0.0)
    fractions = np.linspace(0.1, 1.0, 25)
    pairs = [(f * low, g * high) for f in (fractions if low < 0 else [1.0]) for g in (fractions if high > 0 else [1.0])]
    best = min(squared_error(x, *pair, bits) for pair in pairs)
    assert low <= got[0] <= 0 <= got[1] <= high
    assert squared_error(x, *got, bits) <= 1.1 * best


def test_mse_clips_more_at_fewer_bits():
    made = seen_by("histogram-mse", DATA["relu of laplace"])
    ends = [made.range(bits)[1] for bits in (2, 3, 4, 8)]
    assert ends == sorted(ends)
    assert ends[0] < 0.6 * ends[-1]


@pytest.mark.parametrize("name", ["gauss", "relu", "laplace", "relu of laplace", "negative"])
@pytest.mark.parametrize("bits", [4, 7, 8])
def test_entropy_clips_the_tail_and_no_more(name, bits):
    data = DATA[name]
    low, high = seen_by("entropy", data).range(bits)
    x = data.double()
    below, above = (x < low).double().mean(), (x > high).double().mean()
    assert low >= min(x.min().item(), 0) - 1e-9
    assert high <= max(x.max().item(), 0) + 1e-9
    assert below + above < 0.02
    # As good as the whole range, or nearly, where it is used: at few levels.
    if bits == 4:
        whole = squared_error(x.numpy(), min(x.min().item(), 0), max(x.max().item(), 0), bits)
        assert squared_error(x.numpy(), low, high, bits) < whole


def test_entropy_leaves_an_outlier_out():
    low, high = seen_by("entropy", DATA["outlier"]).range(8)
    assert low == 0
    assert high < 0.5 * 60


@pytest.mark.parametrize("name", NAMES)
def test_constant_and_zero_inputs(name):
    for value in (0.0, 5.0, -3.0):
        made = seen_by(name, torch.full((50,), value))
        assert settled(made, 8, "x") == (value, value)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("factor", [2.0**-80, 2.0**-20, 2.0**10, 2.0**85])
def test_ranges_scale_with_the_data(name, factor):
    data = DATA["gauss"][:2000]
    plain, scaled = seen_by(name, data, 1).range(8), seen_by(name, data * factor, 1).range(8)
    assert [end / factor for end in scaled] == pytest.approx(plain, rel=1e-6)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("position", [0, 1, 2])
def test_what_is_not_finite_is_an_error_whenever_it_came(name, bad, position):
    made = observer(ActivationSpec(observer=name))
    for i in range(3):
        batch = normal(64, seed=i)
        if i == position:
            batch[7] = bad
        made.update(batch)
    with pytest.raises(EngineError, match="at conv3") as raised:
        settled(made, 8, "conv3")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", NAMES)
def test_nothing_seen_is_an_error(name):
    with pytest.raises(EngineError, match="nothing"):
        settled(observer(ActivationSpec(observer=name)), 8, "x")


# The average is one over batches; the divergence is flat in the tail, where another bin width moves its minimum.
@pytest.mark.parametrize("name", ["minmax", "percentile", "histogram-mse"])
def test_batches_may_come_in_any_cut(name):
    """What is observed does not hang on how the images were batched."""
    data = DATA["laplace"]
    one, many = seen_by(name, data, 1).range(8), seen_by(name, data, 50).range(8)
    assert many == pytest.approx(one, rel=0.03)


def test_state_is_constant():
    made = HistogramMSE()
    made.update(normal(1000))
    size = made.histogram.counts.numel()
    for i in range(20):
        made.update(normal(1000, seed=i) * (i + 1))
    assert made.histogram.counts.numel() == size
    assert not any(isinstance(v, list | dict) for v in vars(made.histogram).values())
