"""Data of any kind as a task reads it: three splits of items, each an input of the model and what the answer is held against."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from engine.errors import EngineError, UsageError
from engine.machine import ranks

SplitName = Literal["train", "validation", "test"]
SPLIT_NAMES: tuple[SplitName, ...] = ("train", "validation", "test")


class Items(NamedTuple):
    """Some items, batched: ``inputs`` is a tensor, a tuple of the model's arguments or a dict of its keyword arguments, of tensors whose
    first dimension counts the items; ``targets`` is a tree of such tensors, or a list with one entry an item."""

    inputs: Any
    targets: Any


class ItemSplit(Protocol):
    """Items that can be counted and read by position, held in memory or fetched when asked for.

    A split whose items differ in size also has ``kind(place)``, a value that is equal for items that can be read together.
    """

    def __len__(self) -> int: ...

    def read(self, places: Sequence[int]) -> Items:
        """The items at ``places``, in that order. Raises EngineError, with the file, for one that cannot be read."""
        ...


@dataclass(frozen=True, eq=False)
class MemoryItems:
    """A split in memory. Raises EngineError where inputs and targets do not count the same items."""

    items: Items

    def __post_init__(self) -> None:
        sizes = {len(leaf) for part in self.items for leaf in _counted(part)}
        if len(sizes) != 1:
            raise EngineError(f"a split holds inputs and targets of {sorted(sizes)} items: give one target for each input")

    def __len__(self) -> int:
        return len(_counted(self.items.inputs)[0])

    def read(self, places: Sequence[int]) -> Items:
        index = torch.tensor(places, dtype=torch.long)
        targets = self.items.targets
        some = [targets[i] for i in places] if isinstance(targets, list) else tree_map(lambda x: x[index], targets)
        return Items(tree_map(lambda x: x[index], self.items.inputs), some)


@dataclass(frozen=True, eq=False)
class SomeItems:
    """The items of another split at ``places``, in that order, without a copy."""

    whole: ItemSplit
    places: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.places)

    def read(self, places: Sequence[int]) -> Items:
        return self.whole.read([self.places[i] for i in places])

    def kind(self, place: int) -> Hashable:
        return kind_of(self.whole, self.places[place])


def kind_of(split: ItemSplit, place: int) -> Hashable:
    """What an item has in common with those that it can be read with; None for all items of most splits."""
    find = getattr(split, "kind", None)
    return find(place) if find else None


def targets_of(split: ItemSplit) -> Any:
    """The targets of all items of a split, without reading inputs where it holds them apart."""
    if isinstance(split, SomeItems):
        index = torch.tensor(split.places, dtype=torch.long)
        return tree_map(lambda x: x[index], targets_of(split.whole))
    if isinstance(split, MemoryItems):
        return split.items.targets
    apart = getattr(split, "targets", None)
    return apart if apart is not None else split.read(range(len(split))).targets


Augment = Callable[[Items, torch.Generator], Items]
"""A batch of training items, changed a little with what the generator draws."""


@dataclass(frozen=True, eq=False)
class ItemData:
    """A data set of a task.

    ``outputs`` is the number of a model's outputs that it takes (classes, labels, columns of numbers), ``labels`` are their names.
    Splits are stored mixed, so that the first items of any of them are a fair sample. ``about`` are further keys of the report's
    ``data``, ``notes`` say what was passed over and where splits come from, ``augment`` changes training batches. ``doubt`` is what the
    items cannot tell whatever is measured on them, as part of a sentence.
    """

    name: str
    train: ItemSplit
    validation: ItemSplit
    test: ItemSplit
    outputs: int
    labels: tuple[str, ...] = ()
    about: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    augment: Augment | None = None
    doubt: str = ""

    def split(self, name: SplitName) -> ItemSplit:
        return {"train": self.train, "validation": self.validation, "test": self.test}[name]

    def count(self, split: SplitName, limit: int | None = None) -> int:
        """How many items ``batches`` gives. Raises UsageError for a ``limit`` under 1."""
        if limit is not None and limit < 1:
            raise UsageError(f"limit {limit} leaves nothing of {self.name}: give at least 1")
        size = len(self.split(split))
        return size if limit is None else min(size, limit)

    def batches(
        self, split: SplitName, batch: int, *, limit: int | None = None, seed: int | None = None, augment: bool = False
    ) -> Iterator[tuple[Items, int]]:
        """A split in batches of at most ``batch`` items that can be read together, each with how many it holds; shuffled by ``seed``,
        else in the stored order."""
        if batch < 1:
            raise UsageError(f"batch size {batch} for {self.name} makes no batches: give at least 1")
        whole, total = self.split(split), self.count(split, limit)
        draw = torch.Generator().manual_seed(0 if seed is None else seed)
        order = list(range(total)) if seed is None else torch.randperm(len(whole), generator=draw)[:total].tolist()
        for index, places in enumerate(_together(whole, order, batch)):
            items = whole.read(places if ranks.is_read(index) else places[:1])
            yield (self.augment(items, draw) if augment and self.augment else items), len(places)

    def steps(self, split: SplitName, batch: int, limit: int | None = None) -> int:
        """How many batches ``batches`` gives in the stored order."""
        return sum(1 for _ in _together(self.split(split), range(self.count(split, limit)), batch))


def _together(whole: ItemSplit, order: Sequence[int], batch: int) -> Iterator[Sequence[int]]:
    """``order`` in batches of at most ``batch`` places whose items can be read together."""
    alike: dict[Hashable, list[int]] = {}
    for place in order:
        alike.setdefault(kind_of(whole, place), []).append(place)
    for places in alike.values():
        for start in range(0, len(places), batch):
            yield places[start : start + batch]


def divided(count: int, seed: int, test: float = 0.2, validation: float = 0.1) -> dict[SplitName, tuple[int, ...]]:
    """Places 0..``count`` - 1 drawn by ``seed`` for each split, at least one each. Raises EngineError for fewer than three items."""
    if count < 3:
        raise EngineError(f"{count} items cannot be divided into training, validation and test: give three or more")
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed)).tolist()
    for_test = max(1, round(count * test))
    for_validation = max(1, round(count * validation))
    held = for_test + for_validation
    return {"test": tuple(order[:for_test]), "validation": tuple(order[for_test:held]), "train": tuple(order[held:])}


def _counted(part: Any) -> Sequence[Any]:
    """The parts of a tree that count items: lists as they are, tensors one by one."""
    if isinstance(part, list):
        return [part]
    found: list[Tensor] = [leaf for leaf in torch.utils._pytree.tree_leaves(part) if isinstance(leaf, Tensor)]
    return found
