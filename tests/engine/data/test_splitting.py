"""Fixed, class-balanced divisions."""

from __future__ import annotations

import numpy as np
import pytest

from engine.data.images.splitting import permutation, require_images, share, take
from engine.errors import EngineError


def test_permutation_never_moves() -> None:
    assert permutation(8, 5).tolist() == [7, 2, 4, 1, 0, 5, 6, 3]


@pytest.mark.parametrize("count", [0, 1, 7, 50, 99, 100])
def test_take_keeps_proportions_and_loses_nothing(count: int) -> None:
    labels = np.repeat(np.arange(4), [50, 30, 19, 1])
    drawn, rest = take(np.arange(100), labels, count, seed=1)
    assert len(drawn) == count
    assert sorted([*drawn, *rest]) == list(range(100))
    expected = np.array([50, 30, 19, 1]) * count / 100
    assert np.all(np.abs(np.bincount(labels[drawn], minlength=4) - expected) < 1)


def test_take_follows_the_seed() -> None:
    labels = np.repeat(np.arange(2), 50)
    drawn, _ = take(np.arange(100), labels, 40, seed=1)
    assert take(np.arange(100), labels, 40, seed=1)[0].tolist() == drawn.tolist()
    assert take(np.arange(100), labels, 40, seed=2)[0].tolist() != drawn.tolist()


def test_what_is_drawn_and_what_is_left_start_with_a_fair_sample() -> None:
    labels = np.repeat(np.arange(10), 200)
    draws = [take(np.arange(2000), labels, 400, seed) for seed in range(50)]
    for part in (0, 1):
        counts = np.array([np.bincount(labels[draw[part][:100]], minlength=10) for draw in draws])
        # A fair draw of 100 from ten equal classes varies by sqrt(100 * 0.1 * 0.9) = 3 a class.
        assert np.abs(counts.mean(axis=0) - 10).max() < 2 and counts.std() < 3.3


def test_a_share_is_at_least_one_image() -> None:
    assert [share(100, 0.1), share(3, 0.1), share(0, 0.1)] == [10, 1, 0]


def test_empty_split_is_named_with_its_place() -> None:
    require_images({"train": 1}, "PLACE")
    with pytest.raises(EngineError, match="the validation split of PLACE has no images"):
        require_images({"train": 1, "validation": 0}, "PLACE")
