"""A data set as the engine sees it: three splits of uint8 images, and normalised float batches made from them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal, Protocol

import torch
from torch import Tensor

from engine.data.images.augment import crop_and_flip
from engine.errors import EngineError, UsageError
from engine.machine import ranks
from engine.models.transform import Transform, Triple

SplitName = Literal["train", "validation", "test"]
__all__ = ["Data", "MemorySplit", "Split", "SplitName", "Subset", "Triple", "check_labels"]


class Split(Protocol):
    """Images that can be counted and read by position, held in memory or fetched when asked for."""

    def __len__(self) -> int: ...

    def read(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Images uint8 (N, 3, H, W) and labels int64 (N,) at ``indices``, int64 (N,), in that order."""
        ...


@dataclass(frozen=True, eq=False)
class MemorySplit:
    """A split in memory: ``images`` uint8 (N, 3, H, W) and ``labels`` int64 (N,). ``EngineError`` where they do not fit."""

    images: Tensor
    labels: Tensor

    def __post_init__(self) -> None:
        if self.images.dtype != torch.uint8 or self.images.ndim != 4 or self.images.shape[1] != 3:
            found = f"{self.images.dtype} {tuple(self.images.shape)}"
            raise EngineError(f"images of a split must be uint8 (N, 3, H, W), these are {found}: convert them before they are handed over")
        if self.labels.dtype != torch.int64 or self.labels.shape != self.images.shape[:1]:
            found = f"{self.labels.dtype} {tuple(self.labels.shape)}"
            raise EngineError(f"labels of a split must be int64 ({len(self.images)},), these are {found}: give one per image")

    def __len__(self) -> int:
        return len(self.images)

    def read(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Images uint8 (N, 3, H, W) and labels int64 (N,) at ``indices``."""
        return self.images[indices], self.labels[indices]


@dataclass(frozen=True, eq=False)
class Subset:
    """Some images of another split in an order of their own, without a copy; ``indices`` is int64 (N,) into ``whole``."""

    whole: Split
    indices: Tensor

    def __len__(self) -> int:
        return len(self.indices)

    def read(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Images uint8 (N, 3, H, W) and labels int64 (N,) at ``indices`` of this subset."""
        return self.whole.read(self.indices[indices])


def check_labels(labels: Tensor, classes: int, place: str) -> None:
    """Raise ``EngineError`` naming ``place`` when a label, int64 (N,), is outside ``range(classes)``."""
    outside = labels[(labels < 0) | (labels >= classes)]
    if len(outside):
        label = int(outside[0])
        raise EngineError(f"{place} has label {label} but only classes 0..{classes - 1} exist: correct the labels or the class names")


@dataclass(frozen=True, eq=False)
class Data:
    """An image classification data set.

    ``shape`` is (3, H, W) of every image. ``mean`` and ``std`` are per channel for pixels in 0..1. ``flip`` says whether
    a mirrored image keeps its class and ``pad`` by how many pixels a training image may be shifted. Splits are stored
    with their classes mixed, so the first images of any of them are a fair sample of it. ``transform`` is what images
    of a folder went through, None where they come as they are; ``notes`` say what of the folder is used for what, or not at all.
    ``calibration`` are images without labels that calibrate, None where the first training images do.
    """

    name: str
    classes: tuple[str, ...]
    shape: tuple[int, int, int]
    mean: Triple
    std: Triple
    train: Split
    validation: Split
    test: Split
    flip: bool
    pad: int
    transform: Transform | None = None
    notes: tuple[str, ...] = ()
    calibration: Split | None = None

    def split(self, name: SplitName) -> Split:
        """The split of that name; ``UsageError`` for any other name."""
        found: dict[str, Split] = {"train": self.train, "validation": self.validation, "test": self.test}
        if name not in found:
            raise UsageError(f"{self.name} has no split {name!r}: use one of {', '.join(found)}")
        return found[name]

    def count(self, split: SplitName, limit: int | None = None) -> int:
        """How many images ``batches`` gives for the same ``split`` and ``limit``. ``UsageError`` when ``limit`` is under 1."""
        if limit is not None and limit < 1:
            raise UsageError(f"limit {limit} leaves no image of {self.name}: give at least 1")
        size = len(self.split(split))
        return size if limit is None else min(size, limit)

    def batches(
        self,
        split: SplitName,
        batch: int,
        *,
        limit: int | None = None,
        seed: int | None = None,
        augment: bool = False,
        device: str | torch.device = "cpu",
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Read a split once as (images float32 (N, 3, H, W), normalised by ``mean`` and ``std``; labels int64 (N,)).

        N is ``batch``, and what is left in the last. Without ``seed`` the images come in their stored order and ``limit``
        keeps the first ones; with it they are shuffled and ``limit`` keeps the first of the shuffled. ``augment`` shifts
        by up to ``pad`` pixels and mirrors if ``flip``, repeatably for a ``seed`` (0 where none is given). One batch at
        a time is held. ``UsageError`` when ``batch`` or ``limit`` is under 1; ``EngineError`` when an image cannot be read.
        """
        return self._batches(self.split(split), batch, self.count(split, limit), seed, augment, torch.device(device))

    def calibration_batches(self, batch: int, limit: int, device: str | torch.device = "cpu") -> Iterator[tuple[Tensor, Tensor]]:
        """The images that calibrate, the first ``limit`` of them, as ``batches`` gives them; without labels these are 0."""
        if self.calibration is None:
            return self.batches("train", batch, limit=limit, device=device)
        return self._batches(self.calibration, batch, self.calibration_count(limit), None, False, torch.device(device))

    def calibration_count(self, limit: int) -> int:
        """How many images ``calibration_batches`` gives."""
        return self.count("train", limit) if self.calibration is None else min(len(self.calibration), limit)

    def _batches(
        self, split: Split, batch: int, total: int, seed: int | None, augment: bool, device: torch.device
    ) -> Iterator[tuple[Tensor, Tensor]]:
        if batch < 1:
            raise UsageError(f"batch size {batch} for {self.name} makes no batches: give at least 1")
        return self._read(split, batch, total, seed, augment, device)

    def _read(
        self, split: Split, batch: int, total: int, seed: int | None, augment: bool, device: torch.device
    ) -> Iterator[tuple[Tensor, Tensor]]:
        generator = torch.Generator().manual_seed(0 if seed is None else seed)
        order = torch.arange(total) if seed is None else torch.randperm(len(split), generator=generator)[:total]
        mean = torch.tensor(self.mean, dtype=torch.float32, device=device).view(1, 3, 1, 1)
        std = torch.tensor(self.std, dtype=torch.float32, device=device).view(1, 3, 1, 1)
        for index, start in enumerate(range(0, total, batch)):
            if not ranks.is_read(index):
                count = min(batch, total - start)
                yield torch.empty(count, 0), torch.zeros(count, dtype=torch.long)
                continue
            images, labels = split.read(order[start : start + batch])
            images, labels = images.to(device), labels.to(device)
            if augment:
                images = crop_and_flip(images, self.pad, self.flip, generator)
            yield images.to(torch.float32).div_(255).sub_(mean).div_(std), labels

    def with_normalization(self, mean: Triple, std: Triple) -> Data:
        """The same images under another ``mean`` and ``std`` (three numbers each, for pixels in 0..1).

        ``UsageError`` when there are not three of each, one is not finite, or a ``std`` is not above zero.
        """
        for option, values in (("mean", mean), ("std", std)):
            if len(values) != 3 or not all(math.isfinite(value) for value in values):
                raise UsageError(f"{option} {_listed(values)} cannot normalise {self.name}: give three finite numbers, such as 0.5,0.5,0.5")
        if min(std) <= 0:
            raise UsageError(f"std {_listed(std)} cannot normalise {self.name}: each of the three must be above zero")
        red, green, blue = (float(value) for value in mean)
        red_std, green_std, blue_std = (float(value) for value in std)
        return replace(self, mean=(red, green, blue), std=(red_std, green_std, blue_std))


def _listed(values: Triple) -> str:
    return ",".join(f"{value:g}" for value in values)
