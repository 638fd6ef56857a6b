"""What a screen is shown of calibration, against numpy on all the values at once."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import fx, nn

from engine.errors import EngineError
from engine.lowering.graph import observe
from engine.lowering.graph.layout import arrange
from engine.lowering.graph.observe import SAMPLE, Observed, sample
from engine.lowering.graph.ranges import Watch, ends
from engine.lowering.graph.trace import trace
from engine.recipe.spec import ActivationSpec, LayerSpec, WeightSpec

NAMES = ["minmax", "moving-average", "percentile", "histogram-mse", "entropy"]
COSTLY = ["histogram-mse", "entropy"]


@pytest.mark.parametrize("shape", [(7,), (64, 16, 32, 32), (3, 48, 30, 30), (128, 64, 9, 9), (64, 512), (8, 12, 1025), (1, 3, 299, 299)])
@pytest.mark.parametrize("channels_last", [False, True])
def test_a_sample_is_small_and_meets_every_channel_alike(shape, channels_last):
    x = torch.arange(shape[1] if len(shape) > 1 else 1).reshape([1, -1] + [1] * (len(shape) - 2) if len(shape) > 1 else [-1])
    x = x.expand(shape).float().contiguous()
    if channels_last and len(shape) == 4:
        x = x.contiguous(memory_format=torch.channels_last)
    kept = sample(x)
    assert kept.dim() == 1 and min(x.numel(), SAMPLE // 8) <= len(kept) <= SAMPLE
    assert kept.untyped_storage().data_ptr() == x.untyped_storage().data_ptr()
    _, counts = kept.unique(return_counts=True)
    if len(shape) > 1:
        assert len(counts) == shape[1] and counts.max() <= 1.1 * counts.min() + 2


def a_layout(names, symmetric=False, bits=8):
    """A chain of 1x1 convolutions, each reading a value that the observer of its name looks at."""
    torch.manual_seed(0)
    model = nn.Sequential(*[nn.Conv2d(3, 3, 1) for _ in names]).eval()
    gm = trace(model, torch.randn(2, 3, 4, 4)).module
    specs = {str(i): LayerSpec(WeightSpec(), ActivationSpec(bits, symmetric, name)) for i, name in enumerate(names)}
    return gm, arrange(gm, specs)


def watching(names, **more):
    gm, layout = a_layout(names, **more)
    observed = Observed(gm, layout, counting=True)
    return observed, layout, Watch(observed, layout)


def batches(count, seed=0, grow=0.0):
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(8, 3, 16, 16, generator=g) * (1 + grow * i) for i in range(count)]


def test_rows_are_what_numpy_counts():
    gm, layout = a_layout(NAMES)
    observed = Observed(gm, layout, counting=True)
    watch = Watch(observed, layout)
    values = {c.name: [] for c in layout.classes}

    class Recording(fx.Interpreter):
        def run_node(self, n):
            value = super().run_node(n)
            if n.name in values:
                values[n.name].append(value.detach().numpy().ravel())
            return value

    for x in batches(5, grow=0.5):
        observed.batch(x)
        watch.batch(8)
        Recording(gm).run(x.contiguous(memory_format=torch.channels_last))
    rows = watch.last(observed.grids())
    assert [row.name for row in rows] == [c.name for c in layout.classes]
    assert [row.layers for row in rows] == [(str(i),) for i in range(len(NAMES))]
    for row in rows:
        everything = np.concatenate(values[row.name]).astype(np.float64)
        assert (row.low, row.high) == (everything.min(), everything.max())
        assert (row.clip_low, row.clip_high) == ends(observed.grids()[row.name])
        assert row.bins.start == row.low and row.bins.start + 64 * row.bins.width == pytest.approx(row.high)
        assert len(row.bins.counts) == 64 and sum(row.bins.counts) == len(everything)
        expected, _ = np.histogram(everything, np.linspace(row.low, row.high, 65))
        # An edge may cut one of the finer bins.
        assert np.abs(np.cumsum(row.bins.counts) - np.cumsum(expected)).max() < 0.02 * len(everything)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("bits", [4, 8])
def test_the_last_look_shows_the_clips_of_the_grids(symmetric, bits):
    observed, _, watch = watching(NAMES, symmetric=symmetric, bits=bits)
    for x in batches(4):
        observed.batch(x)
        watch.batch(8)
    live, last = watch.look(10.0), watch.last(observed.grids())
    assert [(r.clip_low, r.clip_high) for r in live] == [(r.clip_low, r.clip_high) for r in last]
    for row in last:
        assert row.clip_low <= 0 <= row.clip_high
        if symmetric:
            assert -row.clip_low == pytest.approx(row.clip_high * 2 ** (bits - 1) / (2 ** (bits - 1) - 1))


def test_costly_clips_are_renewed_in_turn():
    """Without time one of them is at each look, the one whose turn it is."""
    names = [*COSTLY, "minmax", *COSTLY]
    observed, layout, watch = watching(names)
    asked = []
    for c in layout.classes:
        it = observed.observers[c.name]
        it.range = lambda bits, own=it.range, name=c.name: (asked.append(name), own(bits))[1]
    costly = [c.name for c in layout.classes if c.spec.observer in COSTLY]
    for x in batches(3):
        observed.batch(x)
        watch.batch(8)
    asked.clear()
    looks = []
    for _ in range(6):
        watch.look(0.0)
        looks.append([name for name in asked if name in costly])
        asked.clear()
    assert looks == [[costly[i % 4]] for i in range(6)]
    rows = {row.name: row for row in watch.look(60.0)}
    assert sorted(name for name in asked if name in costly) == sorted(costly)
    assert set(rows) == {c.name for c in layout.classes}


def test_before_its_turn_a_costly_clip_is_the_whole_range():
    observed, layout, watch = watching(COSTLY)
    (x,) = batches(1)
    observed.batch(x)
    watch.batch(8)
    first, second = watch.look(0.0)
    assert (first.clip_low, first.clip_high) == pytest.approx(observed.observers[layout.classes[0].name].range(8), rel=0.05)
    assert (second.clip_low, second.clip_high) == (second.low, second.high)


def settled(name, ranges, images=10):
    """The ``settled`` after each of ``ranges``, which come one a batch of ``images``."""
    spec = ActivationSpec(observer=name)
    current = [(0.0, 0.0)]

    class Given:
        quick = name not in COSTLY
        extremes = property(lambda self: current[0])

        def range(self, bits):
            assert self.quick
            return current[0]

    seen = SimpleNamespace(observers={"x": Given()}, histogram=lambda _: SimpleNamespace(over=lambda low, high, bins: (0,) * bins))
    watch = Watch(seen, SimpleNamespace(classes=[SimpleNamespace(name="x", spec=spec, layers=("a", "b", "a"))]))
    found = []
    for ends_now in ranges:
        current[0] = ends_now
        watch.batch(images)
        (row,) = watch.last({"x": SimpleNamespace(zero_point=0, scale=1.0, qmax=1)})
        assert row.layers == ("a", "b")
        found.append(row.settled)
    return found


@pytest.mark.parametrize("name", ["minmax", "entropy"])
def test_a_range_that_stays_is_settled_once_that_was_long_enough(name):
    assert settled(name, [(0, 1)] * 5) == [None, 10, 10, 10, 10]


def test_less_than_a_hundredth_does_not_count_and_more_does():
    assert settled("minmax", [(0, 100), (0, 100.9), (0, 100), (-0.9, 100)]) == [None, 10, 10, 10]
    assert settled("minmax", [(0, 100), (0, 100), (0, 102), (0, 102), (0, 102)]) == [None, 10, None, None, 30]
    assert settled("minmax", [(0, 100), (-1.1, 100), (-1.1, 100), (-1.1, 100)]) == [None, None, 20, 20]


def test_many_small_steps_add_up():
    creeping = [(0, 100 * 1.004**i) for i in range(12)]
    assert settled("minmax", creeping)[-1] is None


def test_the_clip_may_stand_while_the_extremes_move():
    """A moving average or a percentile is judged by what it gives."""
    observed, _, watch = watching(["percentile"])
    x = torch.linspace(-1, 1, 8 * 3 * 4096).reshape(8, 3, 64, 64)
    for i in range(12):
        y = x.clone()
        y[0, 0, 0, 0] = -5.0 * (i + 1)
        observed.batch(y)
        watch.batch(8)
    (row,) = watch.look(0.0)
    assert row.low == -60 and row.clip_low > -2 and row.settled is not None


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("name", NAMES)
def test_a_value_that_is_not_finite_has_no_row(name, bad):
    observed, _, watch = watching([name])
    x, y = batches(2)
    y[0] = bad
    for given in (x, y):
        observed.batch(given)
        watch.batch(8)
        rows = watch.look(1.0)
    assert rows == ()


def test_a_constant_value_has_a_row():
    observed, _, watch = watching(["minmax"])
    observed.batch(torch.zeros(8, 3, 16, 16))
    watch.batch(8)
    (row,) = watch.look(1.0)
    assert row.bins.width > 0 and row.bins.counts[0] == 8 * 3 * 256 and sum(row.bins.counts[1:]) == 0


def test_nothing_is_counted_that_nobody_looks_at(monkeypatch):
    monkeypatch.setattr(observe, "sample", lambda x: pytest.fail("sampled"))
    gm, layout = a_layout(["minmax"])
    observed = Observed(gm, layout)
    observed.batch(batches(1)[0])
    with pytest.raises(KeyError):
        observed.histogram(layout.classes[0].name)


@pytest.mark.parametrize("name", NAMES)
def test_a_batch_in_parts_gives_the_same_ranges(name):
    gm, layout = a_layout([name] * 3)
    whole, parts = Observed(gm, layout), Observed(gm, layout, at_once=3)
    for x in batches(4, grow=0.5):
        whole.batch(x)
        parts.batch(x)
    for c in layout.classes:
        expected, got = whole.observers[c.name], parts.observers[c.name]
        assert got.extremes == pytest.approx(expected.extremes, rel=1e-6)
        # Bins may have grown to another width on the way, by a factor of two; the divergence is flat around its minimum.
        tolerance = 1e-6 if expected.histogram is None else 0.25 if name == "entropy" else 0.05
        assert got.range(8) == pytest.approx(expected.range(8), rel=tolerance)
        if expected.histogram is not None:
            assert got.histogram.counts.sum() == expected.histogram.counts.sum()


def test_a_moving_average_sees_batches_and_not_their_parts():
    gm, layout = a_layout(["moving-average"])
    observed = Observed(gm, layout, at_once=3)
    first, second = batches(2, grow=1.0)
    observed.batch(first)
    observed.batch(second)
    low = 0.9 * first.min().item() + 0.1 * second.min().item()
    high = 0.9 * first.max().item() + 0.1 * second.max().item()
    assert observed.observers[layout.classes[0].name].range(8) == pytest.approx((low, high))


def test_what_is_not_finite_in_one_part_is_seen():
    for name in NAMES:
        gm, layout = a_layout([name])
        observed = Observed(gm, layout, at_once=2)
        x = batches(1)[0]
        x[3, 0, 0, 0] = math.nan
        observed.batch(x)
        with pytest.raises(EngineError, match="NaN or infinity"):
            observed.grids()
