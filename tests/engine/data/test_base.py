"""Batches, augmentation and normalisation of a data set."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from engine.data.images.augment import crop_and_flip
from engine.data.images.base import Data, MemorySplit, Subset, check_labels
from engine.errors import EngineError, UsageError

MEAN, STD = (0.1, 0.5, 0.9), (0.2, 0.25, 0.5)


def _split(count: int, seed: int = 0) -> MemorySplit:
    generator = torch.Generator().manual_seed(seed)
    return MemorySplit(torch.randint(0, 256, (count, 3, 8, 6), dtype=torch.uint8, generator=generator), torch.arange(count))


def _data(count: int = 20, flip: bool = True) -> Data:
    return Data("made", tuple(map(str, range(count))), (3, 8, 6), MEAN, STD, _split(count), _split(5, 1), _split(7, 2), flip, 2)


def _labels(data: Data, **options: object) -> list[int]:
    return torch.cat([labels for _, labels in data.batches("train", 6, **options)]).tolist()  # type: ignore[arg-type]


def test_batches_normalise_as_numpy_does() -> None:
    data = _data()
    assert isinstance(data.train, MemorySplit)
    pixels = data.train.images.numpy().astype(np.float64)
    expected = (pixels / 255 - np.array(MEAN)[:, None, None]) / np.array(STD)[:, None, None]
    batches = list(data.batches("train", 6))
    assert [tuple(images.shape) for images, _ in batches] == [(6, 3, 8, 6)] * 3 + [(2, 3, 8, 6)]
    images = torch.cat([images for images, _ in batches])
    assert images.dtype == torch.float32
    np.testing.assert_allclose(images.numpy(), expected, rtol=0, atol=1e-6)


def test_stored_order_and_limit() -> None:
    data = _data()
    assert _labels(data) == list(range(20))
    assert _labels(data, limit=7) == list(range(7))
    assert _labels(data, limit=99) == list(range(20))
    assert (data.count("train", 7), data.count("train", 99), data.count("validation")) == (7, 20, 5)


def test_seed_shuffles_repeatably() -> None:
    data = _data()
    first = _labels(data, seed=3)
    assert first == _labels(data, seed=3)
    assert first != list(range(20)) and sorted(first) == list(range(20))
    assert first != _labels(data, seed=4)
    assert _labels(data, seed=3, limit=8) == first[:8]


def test_shuffled_images_stay_with_their_labels() -> None:
    data = _data().with_normalization((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    assert isinstance(data.train, MemorySplit)
    for images, labels in data.batches("train", 6, seed=1):
        assert torch.equal((images * 255).round().to(torch.uint8), data.train.images[labels])


def test_batches_are_read_one_at_a_time() -> None:
    asked: list[int] = []

    class Counting:
        def __len__(self) -> int:
            return 10**12

        def read(self, indices: Tensor) -> tuple[Tensor, Tensor]:
            asked.append(len(indices))
            return torch.zeros(len(indices), 3, 8, 6, dtype=torch.uint8), torch.zeros(len(indices), dtype=torch.int64)

    data = Data("endless", ("a",), (3, 8, 6), MEAN, STD, Counting(), _split(1), _split(1), False, 0)
    stream = data.batches("train", 4, limit=1000)
    next(stream), next(stream)
    assert asked == [4, 4]


def test_augmentation_is_repeatable_and_stays_in_range() -> None:
    data = _data()
    once, again, other = (torch.cat([images for images, _ in data.batches("train", 6, seed=seed, augment=True)]) for seed in (1, 1, 2))
    assert torch.equal(once, again) and not torch.equal(once, other)
    plain = torch.cat([images for images, _ in data.batches("train", 6, seed=1)])
    assert not torch.equal(once, plain)
    pixels = once * torch.tensor(STD).view(3, 1, 1) + torch.tensor(MEAN).view(3, 1, 1)
    assert pixels.min() >= -1e-6 and pixels.max() <= 1 + 1e-6


def test_each_augmented_image_is_a_shift_perhaps_mirrored() -> None:
    images = _split(40).images
    result = crop_and_flip(images, 2, True, torch.Generator().manual_seed(0))
    assert result.shape == images.shape and result.dtype == torch.uint8
    found = []
    for before, after in zip(images, result, strict=True):
        for mirrored in (False, True):
            padded = torch.zeros(3, 12, 10, dtype=torch.uint8)
            padded[:, 2:10, 2:8] = before
            if mirrored:
                padded = padded.flip(-1)
            found += [(y, x, mirrored) for y in range(5) for x in range(5) if torch.equal(padded[:, y : y + 8, x : x + 6], after)]
    assert len(found) == 40
    assert {y for y, _, _ in found} == {x for _, x, _ in found} == set(range(5))
    assert {mirrored for _, _, mirrored in found} == {False, True}


def test_no_flip_where_it_would_change_the_class() -> None:
    images = _split(40).images
    assert torch.equal(crop_and_flip(images, 0, False, torch.Generator().manual_seed(0)), images)


def test_subset_reads_through_its_own_order() -> None:
    subset = Subset(Subset(_split(10), torch.tensor([9, 5, 7, 1])), torch.tensor([3, 0]))
    assert len(subset) == 2
    assert subset.read(torch.tensor([1, 0]))[1].tolist() == [9, 1]


@pytest.mark.parametrize(
    ("mean", "std"),
    [
        (MEAN, (0.2, 0.0, 0.2)),
        (MEAN, (0.2, -0.1, 0.2)),
        (MEAN, (0.2, float("inf"), 0.2)),
        (MEAN, (0.2, float("nan"), 0.2)),
        ((float("nan"), 0.0, 0.0), STD),
        ((0.5,), STD),
    ],
)
def test_impossible_normalisation_is_refused(mean: tuple[float, float, float], std: tuple[float, float, float]) -> None:
    with pytest.raises(UsageError, match="cannot normalise made"):
        _data().with_normalization(mean, std)


def test_normalisation_is_replaced_in_a_copy() -> None:
    data = _data()
    other = data.with_normalization((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    assert (other.mean, other.std, data.mean) == ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), MEAN)
    assert other.train is data.train


def test_wrong_requests_fail_before_the_first_batch() -> None:
    with pytest.raises(UsageError, match="batch size 0"):
        _data().batches("train", 0)
    with pytest.raises(UsageError, match="limit 0"):
        _data().batches("train", 1, limit=0)
    with pytest.raises(UsageError, match="train, validation, test"):
        _data().batches("dev", 1)  # type: ignore[arg-type]


def test_misshapen_splits_and_labels_are_refused() -> None:
    with pytest.raises(EngineError, match="uint8"):
        MemorySplit(torch.zeros(2, 3, 4, 4), torch.zeros(2, dtype=torch.int64))
    with pytest.raises(EngineError, match="one per image"):
        MemorySplit(torch.zeros(2, 3, 4, 4, dtype=torch.uint8), torch.zeros(3, dtype=torch.int64))
    check_labels(torch.tensor([0, 9]), 10, "here")
    for label in (-1, 10):
        with pytest.raises(EngineError, match=f"here has label {label} but only classes 0..9"):
            check_labels(torch.tensor([0, label]), 10, "here")
