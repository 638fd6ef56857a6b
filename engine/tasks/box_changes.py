"""What two models say of the same image: which boxes one of them gains, loses, or gives another class."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from engine.tasks.base import ItemAnswer
from engine.tasks.detections import Detections

SAME = 0.5


@dataclass(frozen=True)
class BoxChange:
    """One box that only one of two models finds (``gained`` by the second, ``lost`` from the first), or that both find with different
    classes (``relabelled``). ``box`` is (x1, y1, x2, y2) in pixels; ``label`` and ``score`` are the second model's, of a lost box the
    first's, the score None where it is not known; ``before`` is the first model's class of a relabelled box."""

    kind: str
    box: tuple[float, float, float, float]
    label: int
    score: float | None
    before: int | None = None


def box_changes(before: Detections, after: Detections, overlap: float = SAME) -> tuple[BoxChange, ...]:
    """What changes from ``before`` to ``after``, both after a threshold of scores; lost, gained and relabelled, each best first.

    Boxes are the same object where their IoU is ``overlap`` or more: pairs are taken by falling IoU, those of one class first, each box
    once.

    >>> one = Detections(torch.tensor([[0.0, 0.0, 8.0, 8.0]]), torch.tensor([0.9]), torch.tensor([3]))
    >>> none = Detections(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.long))
    >>> [(change.kind, change.label) for change in box_changes(one, none)]
    [('lost', 3)]
    """
    same = _pairs(before, after, overlap)
    left = [i for i in range(len(before.labels)) if i not in dict(same)]
    new = [i for i in range(len(after.labels)) if i not in {j for _, j in same}]
    others = _pairs(_some(before, left), _some(after, new), overlap, any_class=True)
    turned = [(left[i], new[j]) for i, j in others]
    lost = [_change("lost", before, i) for i in left if i not in {i for i, _ in turned}]
    gained = [_change("gained", after, j) for j in new if j not in {j for _, j in turned}]
    relabelled = [_change("relabelled", after, j, int(before.labels[i])) for i, j in turned]
    return (*_best_first(lost), *_best_first(gained), *_best_first(relabelled))


def answer_changes(before: ItemAnswer, after: ItemAnswer, overlap: float = SAME) -> tuple[BoxChange, ...]:
    """``box_changes`` of two models' answers to one item, whose boxes are best first; empty where one of them has no boxes."""
    if before.boxes is None or before.classes is None or after.boxes is None or after.classes is None:
        return ()
    first = Detections(before.boxes, torch.zeros(len(before.boxes)), before.classes)
    second = Detections(after.boxes, torch.zeros(len(after.boxes)), after.classes)
    return tuple(replace(change, score=None) for change in box_changes(first, second, overlap))


def agreeing(mine: Detections, other: Detections, overlap: float = SAME) -> float:
    """The part (0..1) of the objects of either that are in both, with the same class: 1 where nothing is in either."""
    pairs = len(_pairs(mine, other, overlap))
    union = len(mine.labels) + len(other.labels) - pairs
    return pairs / union if union else 1.0


def _pairs(before: Detections, after: Detections, overlap: float, any_class: bool = False) -> list[tuple[int, int]]:
    """Places of boxes that are the same object, by falling IoU."""
    if not len(before.labels) or not len(after.labels):
        return []
    shared = _overlaps(before.boxes, after.boxes)
    if not any_class:
        shared = torch.where(before.labels[:, None] == after.labels[None], shared, 0.0)
    taken: list[tuple[int, int]] = []
    order = shared.flatten().argsort(descending=True, stable=True).tolist()
    for place in order:
        i, j = divmod(place, len(after.labels))
        if float(shared[i, j]) < overlap:
            break
        if all(i != a and j != b for a, b in taken):
            taken.append((i, j))
    return taken


def _overlaps(mine: Tensor, other: Tensor) -> Tensor:
    from torchvision.ops import box_iou

    found: Tensor = box_iou(mine.float(), other.to(mine.device).float())
    return found


def _some(one: Detections, places: list[int]) -> Detections:
    index = torch.tensor(places, dtype=torch.long)
    return Detections(one.boxes[index], one.scores[index], one.labels[index])


def _change(kind: str, one: Detections, place: int, before: int | None = None) -> BoxChange:
    x1, y1, x2, y2 = one.boxes[place].tolist()
    return BoxChange(kind, (x1, y1, x2, y2), int(one.labels[place]), float(one.scores[place]), before)


def _best_first(found: list[BoxChange]) -> list[BoxChange]:
    return sorted(found, key=lambda change: -(change.score or 0.0))
