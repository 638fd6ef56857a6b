"""What every data set of boxes gives: images float32 (N, 3, H, W) in 0..1, and for each image what is where."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.data.items import Items

Target = dict[str, Tensor]
"""``boxes`` float32 (N, 4): (x1, y1, x2, y2) in pixels; ``labels`` int64 (N,), counted from 0; ``iscrowd`` int64 (N,), 1 for an object
that counts neither for nor against a model: a crowd in COCO's sense, or an object that is marked as difficult."""

# A box of which an augmented image shows less than this is no example of its class.
VISIBLE = 0.5


def target(boxes: Tensor | Sequence[Sequence[float]], labels: Sequence[int] | Tensor, iscrowd: Sequence[int] | Tensor = ()) -> Target:
    """A target of float32 boxes (N, 4) and integers (N,); without ``iscrowd`` nothing is a crowd."""
    found = torch.as_tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    marked = torch.as_tensor(iscrowd, dtype=torch.int64) if len(iscrowd) else torch.zeros(len(found), dtype=torch.int64)
    return {"boxes": found, "labels": torch.as_tensor(labels, dtype=torch.int64).reshape(-1), "iscrowd": marked}


@dataclass(frozen=True, eq=False)
class MemoryImages:
    """A split in memory: ``images`` uint8 (N, 3, H, W) and a target for each."""

    images: Tensor
    targets: tuple[Target, ...]

    def __len__(self) -> int:
        return len(self.targets)

    def read(self, places: Sequence[int]) -> Items:
        index = torch.tensor(places, dtype=torch.long)
        return Items(self.images[index].float().div_(255), [dict(self.targets[i]) for i in places])


@dataclass(frozen=True)
class Shifted:
    """Training images moved by up to ``pixels`` each way, black where they moved off, with their boxes."""

    pixels: int

    def __call__(self, items: Items, draw: torch.Generator) -> Items:
        moves = torch.randint(-self.pixels, self.pixels + 1, (len(items.targets), 2), generator=draw).tolist()
        images = torch.stack([_moved(image, dx, dy) for image, (dx, dy) in zip(items.inputs, moves, strict=True)])
        height, width = images.shape[-2:]
        targets = [_moved_boxes(one, dx, dy, width, height) for one, (dx, dy) in zip(items.targets, moves, strict=True)]
        return Items(images, targets)


def _moved(image: Tensor, dx: int, dy: int) -> Tensor:
    found = torch.zeros_like(image)
    height, width = image.shape[-2:]
    found[:, max(dy, 0) : height + min(dy, 0), max(dx, 0) : width + min(dx, 0)] = image[
        :, max(-dy, 0) : height + min(-dy, 0), max(-dx, 0) : width + min(-dx, 0)
    ]
    return found


def _moved_boxes(one: Mapping[str, Tensor], dx: int, dy: int, width: int, height: int) -> Target:
    boxes = one["boxes"] + torch.tensor([dx, dy, dx, dy], dtype=torch.float32)
    inside = clipped(boxes, width, height)
    kept = area(inside) > VISIBLE * area(boxes)
    return {"boxes": inside[kept], "labels": one["labels"][kept], "iscrowd": one["iscrowd"][kept]}


def clipped(boxes: Tensor, width: float, height: float) -> Tensor:
    """The part of ``boxes`` (N, 4) inside of an image."""
    return torch.stack(
        [boxes[:, 0].clamp(0, width), boxes[:, 1].clamp(0, height), boxes[:, 2].clamp(0, width), boxes[:, 3].clamp(0, height)], 1
    )


def area(boxes: Tensor) -> Tensor:
    """Of boxes (N, 4), float (N,); 0 for one of negative width or height."""
    return (boxes[:, 2] - boxes[:, 0]).clamp(min=0) * (boxes[:, 3] - boxes[:, 1]).clamp(min=0)
