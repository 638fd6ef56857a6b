"""The digits that are on every machine."""

from __future__ import annotations

from itertools import chain

import numpy as np
import pytest
import torch

from engine.data.images import digits
from engine.data.images.base import Data, Split


@pytest.fixture(scope="module")
def data() -> Data:
    return digits.load()


def _all(split: Split) -> tuple[torch.Tensor, torch.Tensor]:
    return split.read(torch.arange(len(split)))


def test_splits_are_whole_disjoint_and_stable(data: Data) -> None:
    indices = [split.indices.tolist() for split in (data.train, data.validation, data.test)]  # type: ignore[attr-defined]
    assert [len(part) for part in indices] == [1257, 180, 360]
    assert sorted(chain(*indices)) == list(range(1797))
    again = digits.load()
    assert [split.indices.tolist() for split in (again.train, again.validation, again.test)] == indices  # type: ignore[attr-defined]
    assert indices[2][:5] == [511, 778, 1705, 1632, 302]


def test_classes_are_balanced_and_mixed(data: Data) -> None:
    for split, size in ((data.train, 1257), (data.validation, 180), (data.test, 360)):
        counts = torch.bincount(_all(split)[1], minlength=10)
        assert counts.min() > 0.9 * size / 10 and counts.max() < 1.1 * size / 10
    for split in (data.train, data.test):
        assert torch.bincount(split.read(torch.arange(100))[1], minlength=10).min() >= 4


def test_images_are_the_enlarged_scans(data: Data) -> None:
    from sklearn.datasets import load_digits  # type: ignore[import-untyped]

    images, labels = _all(data.test)
    assert images.dtype == torch.uint8 and tuple(images.shape[1:]) == data.shape == (3, 32, 32)
    assert torch.equal(images[:, 0], images[:, 1]) and torch.equal(images[:, 0], images[:, 2])
    scans, targets = load_digits(return_X_y=True)
    chosen = data.test.indices.numpy()  # type: ignore[attr-defined]
    assert labels.tolist() == targets[chosen].tolist()
    # Pixel 1 of 4 in a cell lies 1/8 of a cell before its centre: 7/8 of the cell, 1/8 of the one before, each way.
    scan = scans[chosen[0]].reshape(8, 8) * 255 / 16
    expected = 0.875 * (0.875 * scan[3, 4] + 0.125 * scan[3, 3]) + 0.125 * (0.875 * scan[2, 4] + 0.125 * scan[2, 3])
    assert images[0, 0, 4 * 3 + 1, 4 * 4 + 1].item() == pytest.approx(expected, abs=0.51)


def test_constants_are_those_of_the_train_split(data: Data) -> None:
    pixels = _all(data.train)[0].numpy().astype(np.float64) / 255
    assert data.mean == (round(pixels.mean(), 4),) * 3
    assert data.std == (round(pixels.std(), 4),) * 3


def test_a_digit_is_not_mirrored(data: Data) -> None:
    assert data.flip is False and data.pad == 2 and data.classes == tuple("0123456789")
