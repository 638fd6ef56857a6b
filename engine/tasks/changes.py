"""The items whose answer changed most between fp32 and a quantized model on a split."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.events.pictures import MOST, SIDE, Box, Look, Picture
from engine.events.rows import ChangeRow
from engine.tasks.base import Batch, ItemAnswer, Task


@dataclass(frozen=True)
class Changes:
    """``rows`` are those that lost most, with their ``pictures`` where they have any; the counts are of all ``items``."""

    items: int = 0
    changed: int = 0
    worse: int = 0
    better: int = 0
    rows: tuple[ChangeRow, ...] = ()
    pictures: tuple[Picture, ...] = ()


@dataclass(frozen=True)
class _Change:
    row: ChangeRow
    picture: Picture | None

    def later(self, by: int) -> _Change:
        """The same of a split that so many items come before."""
        picture = None if self.picture is None else replace(self.picture, place=self.picture.place + by)
        return _Change(replace(self.row, place=self.row.place + by), picture)


class Watch:
    """Takes in what both forms answer, batch by batch, and keeps the ``most`` items that lost most."""

    def __init__(self, task: Task, most: int = MOST) -> None:
        self._task, self.most = task, most
        self._items = self._changed = self._worse = self._better = 0
        self._kept: list[_Change] = []
        self._any = True

    def add(self, batch: Batch, before: Any, after: Any) -> None:
        """``before`` and ``after`` are the raw outputs of fp32 and of the quantized model on ``batch``."""
        answers = self._task.item_answers(before, batch) if self._any else ()
        self._any = self._any and bool(answers)
        if not self._any:
            return
        found: list[tuple[float, int, ItemAnswer, ItemAnswer]] = []
        for index, (first, second) in enumerate(zip(answers, self._task.item_answers(after, batch), strict=True)):
            if not differ(first, second):
                continue
            self._changed += 1
            loss = lost(first, second)
            self._worse, self._better = self._worse + (loss > 0), self._better + (loss < 0)
            found.append((loss, index, first, second))
        # Of a batch no more can be among the first of all: only their pictures are made.
        found.sort(key=lambda one: (-one[0], one[1]))
        self._kept += [self._change(batch, *one) for one in found[: self.most]]
        self._kept = ranked(self._kept, self.most)
        self._items += len(answers)

    def _change(self, batch: Batch, loss: float, index: int, first: ItemAnswer, second: ItemAnswer) -> _Change:
        place = self._items + index
        row = ChangeRow(place, first.label, first.words, second.words, _finite(first.score), _finite(second.score))
        return _Change(row, pictured(self._task.picture(batch, index), place, first, second))

    def state(self) -> tuple[Any, ...]:
        """What was taken in, for another to ``take``."""
        return self._items, self._changed, self._worse, self._better, self._any, self._kept

    def take(self, state: tuple[Any, ...]) -> None:
        """What another took in of the batches that come next."""
        items, changed, worse, better, any_, kept = state
        self._any = self._any and any_
        if not self._any:
            return
        self._changed, self._worse, self._better = self._changed + changed, self._worse + worse, self._better + better
        self._kept = ranked([*self._kept, *(one.later(self._items) for one in kept)], self.most)
        self._items += items

    def changes(self) -> Changes | None:
        """What was found; None of a task that has nothing to show of single items."""
        if not self._any or not self._items:
            return None
        rows = tuple(change.row for change in self._kept)
        pictures = tuple(change.picture for change in self._kept if change.picture is not None)
        return Changes(self._items, self._changed, self._worse, self._better, rows, pictures)


def ranked(changes: Sequence[_Change], most: int) -> list[_Change]:
    """Those that lost most first, of equal ones the first of the split; what gained comes last."""
    return sorted(changes, key=lambda change: (-change.row.lost, change.row.place))[:most]


def lost(before: ItemAnswer, after: ItemAnswer) -> float:
    """By how much the score fell; 0 where nothing is right or wrong."""
    if before.score is None or after.score is None or not (math.isfinite(before.score) and math.isfinite(after.score)):
        return 0.0
    return 0.0 if math.isclose(before.score, after.score, rel_tol=1e-6, abs_tol=1e-9) else before.score - after.score


def differ(before: ItemAnswer, after: ItemAnswer) -> bool:
    """Whether two answers to one item are not the same."""
    if before.words != after.words or lost(before, after):
        return True
    return _apart(before.mask, after.mask, 0.0) or _apart(before.boxes, after.boxes, 0.5) or _apart(before.classes, after.classes, 0.0)


def pictured(image: Tensor | None, place: int, before: ItemAnswer, after: ItemAnswer) -> Picture | None:
    """``image``, uint8 (3, H, W), at a side of at most 48 pixels, with what both forms drew on it."""
    if image is None:
        return None
    height, width = image.shape[1:]
    scale = min(SIDE / max(height, width), 1.0)
    rows, columns = max(round(height * scale), 1), max(round(width * scale), 1)
    small = F.interpolate(image[None].float(), (rows, columns), mode="area")[0].round().clamp(0, 255).to(torch.uint8)
    looks = {form: _look(answer, (height, width), (rows, columns)) for form, answer in (("fp32", before), ("quantized", after))}
    drawn = {form: look for form, look in looks.items() if look.mask or look.boxes}
    return Picture(place, columns, rows, bytes(small.permute(1, 2, 0).flatten().tolist()), drawn)


def _look(answer: ItemAnswer, size: tuple[int, int], small: tuple[int, int]) -> Look:
    mask, boxes = b"", []
    if answer.mask is not None:
        shrunk = F.interpolate(answer.mask[None, None].float(), small, mode="nearest")[0, 0].clamp(0, 255).to(torch.uint8)
        mask = bytes(shrunk.flatten().tolist())
    if answer.boxes is not None:
        kinds = answer.classes.tolist() if answer.classes is not None else [0] * len(answer.boxes)
        down, across = small[0] / size[0], small[1] / size[1]
        for (x1, y1, x2, y2), kind in zip(answer.boxes.tolist(), kinds, strict=False):
            left, right = (_inside(x * across, small[1]) for x in (x1, x2))
            top, bottom = (_inside(y * down, small[0]) for y in (y1, y2))
            if left <= right and top <= bottom:
                boxes.append(Box(left, top, right, bottom, int(kind)))
    return Look(mask, tuple(boxes))


def _inside(value: float, side: int) -> int:
    return min(max(int(value), 0), side - 1) if math.isfinite(value) else 0


def _apart(before: Tensor | None, after: Tensor | None, by: float) -> bool:
    if before is None or after is None:
        return (before is None) != (after is None)
    return before.shape != after.shape or bool(((before.double() - after.double()).abs() > by).any())


def _finite(score: float | None) -> float | None:
    return score if score is not None and math.isfinite(score) else None
