"""The three splits of one's own files, from those that there are."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from engine.data.items import SPLIT_NAMES, ItemSplit, SomeItems, SplitName, divided
from engine.errors import EngineError

SEED = 224
NAMES: Mapping[SplitName, tuple[str, ...]] = {
    "train": ("train", "training"), "validation": ("validation", "val", "valid", "dev"), "test": ("test", "testing"),
}  # fmt: skip


def completed(given: Mapping[SplitName, ItemSplit], plural: str, place: str) -> tuple[dict[SplitName, ItemSplit], tuple[str, ...]]:
    """All three splits, mixed by a fixed seed, and a note for each that was not ``given``. Without items for test half of those for
    validation are for test; what is then missing is taken from the training items: a fifth for test, a tenth for validation.

    ``plural`` says what the items are, ``place`` where they lie. Raises EngineError for too few."""
    empty = next((name for name in SPLIT_NAMES if name in given and not len(given[name])), None)
    if "train" not in given or empty:
        raise EngineError(f"the {empty or 'train'} split of {place} holds no {plural}: add some, or give other data")
    train, places, notes = given["train"], _mixed(len(given["train"])), []
    splits: dict[SplitName, ItemSplit] = {name: SomeItems(split, _mixed(len(split))) for name, split in given.items()}
    if "validation" in given and "test" not in given and len(given["validation"]) > 1:
        # Training items would flatter a model that was trained on them.
        held = _mixed(len(given["validation"]))
        half = len(held) // 2
        splits |= {"test": SomeItems(given["validation"], held[half:]), "validation": SomeItems(given["validation"], held[:half])}
        notes.append(f"there are no {plural} for test: half of those for validation are for test")
    missing = [name for name in ("test", "validation") if name not in splits]
    if missing:
        try:
            drawn = divided(len(places), SEED)
        except EngineError as error:
            raise EngineError(f"{place}: {error}") from error
        kept = tuple(place for name, some in drawn.items() for place in some if name == "train" or name not in missing)
        splits["train"] = SomeItems(train, kept)
        splits |= {name: SomeItems(train, drawn[name]) for name in drawn if name in missing}
        seen = f": figures of a model that was trained on them say nothing of new {plural}" if "test" in missing else ""
        notes.append(f"there are no {plural} for {' and '.join(missing)}: some of those for training are taken{seen}")
    return splits, tuple(notes)


def _mixed(count: int) -> tuple[int, ...]:
    return tuple(torch.randperm(count, generator=torch.Generator().manual_seed(SEED)).tolist())
