"""Batches of a person's own loaders: read in whatever form they come, and shared out where one loader gives all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from engine import user_code
from engine.errors import EngineError
from engine.tasks.base import Batch, Split, one_each

Loader = Iterable[Any] | Callable[[], Iterable[Any]]
# Of every five batches (or items) of a single loader one is for choices and one for the report.
PARTS = 5
_TARGETS = ("targets", "target", "labels", "label", "y")


@dataclass(frozen=True)
class Source:
    """One split: a loader, and which of its batches or items belong to it (None: all). ``by_item`` counts items of each batch."""

    loader: Loader
    parts: tuple[int, ...] | None = None
    by_item: bool = False


def split_off(train: Loader, validation: Loader | None, test: Loader | None) -> tuple[dict[Split, Source], list[str]]:
    """What each split reads, and how it was split off where it was not given."""
    missing = [split for split, loader in (("validation", validation), ("test", test)) if loader is None]
    if not missing:
        assert validation is not None and test is not None
        return {"train": Source(train), "validation": Source(validation), "test": Source(test)}, []
    fixed, by_item = _in_order(train), _is_short(train)
    what = "item" if by_item else "batch"
    every = tuple(range(PARTS))
    taken: dict[str, tuple[int, ...]] = {split: (PARTS - 1 - i,) for i, split in enumerate(missing)}
    left = tuple(part for part in every if part not in {p for parts in taken.values() for p in parts})
    sources: dict[Split, Source] = {"train": Source(fixed, left, by_item)}
    for split, loader in (("validation", validation), ("test", test)):
        key: Any = split
        sources[key] = Source(loader) if loader is not None else Source(fixed, taken[split], by_item)
    note = f"{' and '.join(missing)} split off train: one {what} in {PARTS} each, by its place (in the data's own order, not shuffled)"
    return sources, [note]


def _in_order(loader: Loader) -> Loader:
    """The same data in a fixed order: a ``DataLoader`` that shuffles would put an item in another split at each pass."""
    if isinstance(loader, torch.utils.data.DataLoader) and isinstance(loader.sampler, torch.utils.data.RandomSampler):
        return torch.utils.data.DataLoader(
            loader.dataset, batch_size=loader.batch_size, shuffle=False, num_workers=loader.num_workers, collate_fn=loader.collate_fn
        )
    return loader


def _is_short(loader: Loader) -> bool:
    """Whether there are too few batches to share them out whole."""
    return not any(number + 1 >= 2 * PARTS for number, _ in enumerate(passes(loader, "train", 0)))


def passes(loader: Loader, split: str, seed: int | None) -> Iterator[Any]:
    """One pass over a loader, its errors told as its author's. What it draws at its start is drawn from ``seed``."""
    state = torch.get_rng_state()
    torch.manual_seed(0 if seed is None else seed)
    try:
        steps = user_code.called(f"the {split} loader", lambda: iter(loader() if callable(loader) else loader))
        while True:
            try:
                raw = next(steps)
            except StopIteration:
                return
            except EngineError:
                raise
            except (Exception, SystemExit) as error:
                raise user_code.failed(f"the {split} loader", error) from error
            if state is not None:
                torch.set_rng_state(state)
                state = None  # type: ignore[assignment]
            yield raw
    finally:
        if state is not None:
            torch.set_rng_state(state)


def batch_of(raw: Any, split: str, number: int) -> Batch:
    """A batch in whatever form a loader gives it. Raises EngineError for what is none."""
    if isinstance(raw, Batch):
        return raw
    if isinstance(raw, Mapping):
        inputs, targets = _of_mapping(dict(raw), split)
    elif isinstance(raw, Sequence) and not isinstance(raw, str | bytes) and len(raw) == 2:
        inputs, targets = raw
    else:
        raise EngineError(
            f"batch {number + 1} of {split} is a {type(raw).__name__}: give (inputs, targets), a dict with a key {_TARGETS[0]!r} or "
            f"{_TARGETS[2]!r}, or engine.Batch"
        )
    if isinstance(inputs, list | tuple) and isinstance(targets, list | tuple) and len(inputs) == len(targets) and one_each(inputs):
        return Batch((list(inputs),), {}, list(targets), len(inputs))
    if isinstance(inputs, Mapping):
        part = Batch((), dict(inputs), targets)
    else:
        part = Batch(tuple(inputs) if isinstance(inputs, tuple | list) else (inputs,), {}, targets)
    leaves = [x for x in tree_leaves((part.args, dict(part.kwargs))) if isinstance(x, Tensor)]
    if not leaves:
        raise EngineError(f"batch {number + 1} of {split} holds no tensor among its inputs: give tensors, tuples or dicts of them")
    count = len(leaves[0]) if leaves[0].dim() else 0
    if not count:
        raise EngineError(f"batch {number + 1} of {split} has an input without a batch dimension, or an empty one")
    several = next((len(x) for x in tree_leaves(targets) if isinstance(x, Tensor) and x.dim()), None)
    several = len(targets) if several is None and isinstance(targets, Sequence) and not isinstance(targets, str) else several
    if several is not None and several != count:
        raise EngineError(f"batch {number + 1} of {split} has {count} inputs and {several} targets: give one target for each input")
    return replace(part, count=count)


def _of_mapping(raw: dict[str, Any], split: str) -> tuple[Any, Any]:
    key = next((name for name in _TARGETS if name in raw), None)
    targets = raw.pop(key) if key else None
    inputs = raw.pop("inputs", None) if "inputs" in raw else None
    return (raw if inputs is None else inputs), targets


def alike(one: Any, other: Any) -> bool:
    """Whether two batches hold the same tensors."""
    pairs = zip(*([x for x in tree_leaves(raw) if isinstance(x, Tensor)] for raw in (one, other)), strict=False)
    return all(a.shape == b.shape and torch.equal(*(x.nan_to_num() if x.is_floating_point() else x for x in (a, b))) for a, b in pairs)
