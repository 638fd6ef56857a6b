"""Inputs drawn at random, where there are none: ``random:3x224x224``, several ``random:3x224x224,int:10``."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.data.items import ItemData, Items, SplitName
from engine.data.names import RANDOM
from engine.errors import UsageError
from engine.plain_text import one_line

DOUBT = "its inputs are numbers drawn at random, which tell nothing of the data that the model is for"
COUNTS: dict[SplitName, int] = {"train": 128, "validation": 32, "test": 64}
# Bounds of what an input may hold: a typing error must not take all memory.
_LARGEST = 2**28
_VOCABULARY = 100
_ONE = re.compile(r"(?:(int|float|bool):)?(\d+(?:x\d+)*)?(?::(\d+))?", re.ASCII)


@dataclass(frozen=True)
class Drawn:
    """One input: ``shape`` without the batch, ``kind`` float (standard normal), int (0 to ``below`` - 1) or bool."""

    kind: str
    shape: tuple[int, ...]
    below: int = _VOCABULARY

    def draw(self, generator: torch.Generator) -> Tensor:
        if self.kind == "float":
            return torch.randn(self.shape, generator=generator)
        if self.kind == "bool":
            return torch.rand(self.shape, generator=generator) < 0.5
        return torch.randint(self.below, self.shape, generator=generator)

    def __str__(self) -> str:
        size = "×".join(map(str, self.shape)) or "one number"
        said = {"float": "standard normal", "bool": "true or false"}.get(self.kind, f"integers below {self.below:,}")
        return f"{size} ({said})"


@dataclass(frozen=True, eq=False)
class RandomItems:
    """Items ``start`` to ``start + count`` of an endless row: each is drawn by its own number, whenever it is read."""

    inputs: tuple[Drawn, ...]
    start: int
    count: int

    def __len__(self) -> int:
        return self.count

    def read(self, places: Sequence[int]) -> Items:
        drawn = [self._item(self.start + place) for place in places]
        columns = tuple(torch.stack(column) for column in zip(*drawn, strict=True))
        return Items(columns if len(columns) > 1 else columns[0], [None] * len(places))

    def _item(self, number: int) -> list[Tensor]:
        generator = torch.Generator().manual_seed(number)
        return [one.draw(generator) for one in self.inputs]


def parse(name: str) -> tuple[Drawn, ...]:
    """The inputs that ``random:SHAPE,SHAPE`` names. Raises UsageError for a text that names none."""
    found = []
    for text in name.removeprefix(RANDOM).split(","):
        match = _ONE.fullmatch(text.strip())
        if match is None or not text.strip():
            raise UsageError(
                f"data {one_line(repr(name), 80)} names no shape: write random:3x224x224, or random:3x224x224,int:10:30522 for two inputs, "
                "the second ten integers below 30522"
            )
        kind, sizes, below = match.groups()
        shape = tuple(int(size) for size in (sizes or "").split("x") if size)
        if 0 in shape or math.prod(shape) > _LARGEST or (below is not None and (kind != "int" or not 0 < int(below) < 2**62)):
            raise UsageError(f"data {one_line(repr(name), 80)}: {text.strip()} has no numbers, or too many: write it as 3x224x224")
        found.append(Drawn(kind or "float", shape, int(below) if below else _VOCABULARY))
    return tuple(found)


def load(name: str) -> ItemData:
    """Splits of fixed sizes, the same in each run. Raises UsageError for a text that names no shape."""
    inputs, start = parse(name), 0
    splits = {}
    for split, count in COUNTS.items():
        splits[split], start = RandomItems(inputs, start, count), start + count
    said = f"inputs drawn at random: {', '.join(map(str, inputs))}"
    return ItemData(name, splits["train"], splits["validation"], splits["test"], 0, (), {"random": True}, (said,), doubt=DOUBT)
