"""Observers of parts of the batches, put together: bit for bit what one observer of all batches is."""

from __future__ import annotations

import math
import random

import pytest
import torch
from torch import Tensor

from engine.numerics.histogram import Histogram
from engine.numerics.observers import merged, observer
from engine.recipe.spec import ActivationSpec


def batches(seed: int) -> list[list[Tensor]]:
    """Values whose range wanders by orders of magnitude, in batches of several updates."""
    draw, dice = torch.Generator().manual_seed(seed), random.Random(seed)

    def one() -> Tensor:
        size = 10 ** dice.uniform(-3, 3)
        shift = dice.choice([0.0, 0.0, size * dice.uniform(-50, 50)])
        return torch.randn(dice.choice([1, 7, 300]), generator=draw) * size + shift

    return [[one() for _ in range(dice.randint(1, 3))] for _ in range(dice.randint(1, 12))]


@pytest.mark.parametrize("seed", range(60))
def test_histograms_of_any_split_of_the_batches_merge_into_that_of_all(seed: int) -> None:
    given, dice = batches(seed), random.Random(seed + 1000)
    whole, parts = Histogram(), [Histogram(part=True) for _ in range(dice.randint(1, 4))]
    for turn, updates in enumerate(given):
        part = dice.choice(parts)
        part.turn = turn
        for x in updates:
            whole.update(x)
            part.update(x)
    found = Histogram.merged(parts)
    assert (found.width, found.first, found.low, found.high) == (whole.width, whole.first, whole.low, whole.high)
    assert torch.equal(found.counts, whole.counts)
    assert found.counts.sum().item() == sum(len(x) for updates in given for x in updates)


@pytest.mark.parametrize("name", ["minmax", "moving-average", "percentile", "histogram-mse", "entropy"])
@pytest.mark.parametrize("seed", range(3))
def test_every_observer_gives_the_range_of_all_batches(name: str, seed: int) -> None:
    spec = ActivationSpec(8, observer=name)  # type: ignore[arg-type]
    whole, parts = observer(spec), [observer(spec, part=True) for _ in range(3)]
    for turn, updates in enumerate(batches(seed)):
        part = parts[turn % 3]
        part.at(turn)
        for x in updates:
            whole.update(x)
            part.update(x)
    found = merged(spec, parts)
    assert found.range(8) == whole.range(8) and found.extremes == whole.extremes


def test_a_value_that_is_not_finite_is_seen_in_whichever_part_it_was() -> None:
    spec = ActivationSpec(8, observer="minmax")
    parts = [observer(spec, part=True) for _ in range(2)]
    parts[0].update(torch.tensor([1.0]))
    parts[1].update(torch.tensor([math.nan]))
    assert all(math.isnan(end) for end in merged(spec, parts).extremes)
    histograms = [Histogram(part=True) for _ in range(2)]
    histograms[0].update(torch.tensor([math.inf]))
    histograms[1].update(torch.tensor([1.0]))
    assert Histogram.merged(histograms).high == math.inf
