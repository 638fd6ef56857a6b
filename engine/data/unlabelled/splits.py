"""Items without targets, divided into the three splits."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from engine.data.items import ItemData, Items, ItemSplit, SomeItems, SplitName, divided

SPLIT_SEED = 12
TRAINING, VALIDATION, TEST = ("train", "training", "calibration"), ("validation", "val", "valid"), ("test",)


@dataclass(frozen=True, eq=False)
class Files:
    """Items in files, read when they are asked for. ``open_item`` gives one item's input by its path, ``kind_of_file`` what files have in
    common that can be read together."""

    paths: tuple[Path, ...]
    open_item: Callable[[Path], Any]
    kind_of_file: Callable[[Path], Hashable] | None = None

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, places: Sequence[int]) -> Items:
        return Items(stacked([self.open_item(self.paths[i]) for i in places]), [None] * len(places))

    def kind(self, place: int) -> Hashable:
        return self.kind_of_file(self.paths[place]) if self.kind_of_file else None


def stacked(inputs: Sequence[Any]) -> Any:
    """Inputs of single items as one batch."""
    return tree_map(lambda *parts: torch.stack(parts) if isinstance(parts[0], Tensor) else parts[0], *inputs)


def data_of(name: str, whole: ItemSplit, *, notes: Iterable[str] = (), about: Mapping[str, Any] | None = None, doubt: str = "") -> ItemData:
    """``whole`` divided by a fixed seed: a fifth for test, a tenth for validation, the rest calibrates. Of one or two items all are in
    each split."""
    count = len(whole)
    if count < 3:
        said = f"{'the only item is' if count == 1 else 'the two items are'} calibrated on and measured on alike"
        return ItemData(name, whole, whole, whole, 0, (), about or {}, (*notes, said), doubt=doubt or said)
    places = divided(count, SPLIT_SEED)
    parts: dict[SplitName, ItemSplit] = {split: SomeItems(whole, chosen) for split, chosen in places.items()}
    held = (len(places[split]) for split in ("train", "validation", "test"))
    said = "{} items divided by a fixed seed: {} calibrate, {} validate, {} test".format(f"{count:,}", *(f"{size:,}" for size in held))
    return ItemData(name, parts["train"], parts["validation"], parts["test"], 0, (), about or {}, (*notes, said), doubt=doubt)


def data_of_parts(
    name: str, given: Mapping[SplitName, ItemSplit], *, notes: Iterable[str] = (), about: Mapping[str, Any] | None = None
) -> ItemData:
    """Splits as their folders give them, ``train`` at least; a split without a folder is taken from the test or training items."""
    if set(given) == {"train"}:
        return data_of(name, given["train"], notes=notes, about=about)
    parts, said = dict(given), list(notes)
    for split, other in (("test", "validation"), ("validation", "test")):
        if split not in parts:
            source: ItemSplit = parts[other]  # type: ignore[index]
            half = len(source) // 2
            if half:
                order = torch.randperm(len(source), generator=torch.Generator().manual_seed(SPLIT_SEED)).tolist()
                parts[split], parts[other] = SomeItems(source, tuple(order[:half])), SomeItems(source, tuple(order[half:]))  # type: ignore[index]
                said.append(f"there is no {split} folder: half of the {other} items are for it")
            else:
                parts[split] = source  # type: ignore[index]
                said.append(f"there is no {split} folder: its one item is that of {other}")
    return ItemData(name, mixed(parts["train"]), parts["validation"], parts["test"], 0, (), about or {}, tuple(said))


def mixed(split: ItemSplit) -> ItemSplit:
    """The same items in an order drawn by a fixed seed: the first ones are a fair sample."""
    order = torch.randperm(len(split), generator=torch.Generator().manual_seed(SPLIT_SEED)).tolist()
    return SomeItems(split, tuple(order))
