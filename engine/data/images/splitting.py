"""Fixed, repeatable ways to divide a data set.

numpy guarantees the stream of ``RandomState`` for good, so a split made here never moves with a library's version: a
figure on the test split means the same images next year.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from engine.errors import EngineError

Indices = npt.NDArray[np.int64]


def permutation(count: int, seed: int) -> Indices:
    """The numbers ``0..count-1``, int64 (count,), in the order that ``seed`` gives."""
    return np.random.RandomState(seed).permutation(count).astype(np.int64)


def share(count: int, fraction: float) -> int:
    """``fraction`` of ``count`` images as a whole number: never none of them, so that small folders keep every split."""
    return min(count, max(1, round(count * fraction)))


def take(indices: Indices, labels: Indices, count: int, seed: int) -> tuple[Indices, Indices]:
    """Draw ``count`` of ``indices`` so that each class keeps its proportion; returns (drawn, rest), both shuffled.

    ``labels`` is the class of every image of the data set, so ``labels[indices]`` are those to be balanced. A class
    gives ``count * its share`` images rounded down, and the largest remainders give one more until ``count`` is reached.
    """
    random = np.random.RandomState(seed)
    shuffled = random.permutation(indices)
    own = labels[shuffled]
    sizes = np.bincount(own)
    exact = sizes * count / max(len(own), 1)
    quota = np.floor(exact).astype(np.int64)
    neediest_first = np.argsort(-(exact - quota), kind="stable")
    quota[neediest_first[: count - int(quota.sum())]] += 1

    by_class = np.argsort(own, kind="stable")
    rank = np.empty(len(own), dtype=np.int64)
    rank[by_class] = np.arange(len(own)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    drawn = rank < quota[own]
    # The draw takes each class from the front, so what is left would begin with the classes that ran full first.
    return random.permutation(shuffled[drawn]), random.permutation(shuffled[~drawn])


def require_images(splits: dict[str, int], place: str) -> None:
    """Raise ``EngineError`` for the first of ``splits`` (name -> number of images) that has none; ``place`` is where it was read."""
    for name, count in splits.items():
        if count == 0:
            raise EngineError(f"the {name} split of {place} has no images: add images there or name another folder with --data")
