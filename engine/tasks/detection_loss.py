"""The loss of a detector whose outputs are scores and boxes of cells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.data.boxes.base import area
from engine.tasks.detections import Images, cell_boxes

# Cells whose middle is this near to an object's, in cells, answer for it (FCOS, revised version, arXiv:2006.09214, section 3.2).
RADIUS = 1.5
_BOX_WEIGHT = 2.0


def loss(levels: Sequence[tuple[Tensor, Tensor]], targets: Sequence[Mapping[str, Tensor]], images: Images) -> Tensor:
    """Quality focal loss of the scores (Li et al. 2020, arXiv:2006.04388, section 3.2) and generalized IoU of the boxes
    (Rezatofighi et al. 2019, arXiv:1902.09630), each a mean over the cells that show an object.

    ``levels`` are logits (N, classes, H, W) and distances (N, 4, H, W); each cell of each level whose middle is near to an object's takes
    the smallest such object."""
    from torchvision.ops import generalized_box_iou_loss

    scores = torch.cat([one.flatten(2).transpose(1, 2) for one, _ in levels], 1)
    boxes = torch.cat([cell_boxes(one, images) for _, one in levels], 1)
    owners = torch.stack([_owners(levels, one, images) for one in targets])
    shown = owners >= 0
    count = max(int(shown.sum()), 1)
    wanted = torch.cat([one["boxes"].to(scores.device)[own[own >= 0]] for one, own in zip(targets, owners, strict=True)])
    labels = torch.cat([one["labels"].to(scores.device)[own[own >= 0]] for one, own in zip(targets, owners, strict=True)])
    found = boxes[shown]
    quality = _iou(found.detach(), wanted)
    aims = torch.zeros_like(scores)
    image, cell = shown.nonzero(as_tuple=True)
    aims[image, cell, labels] = quality
    focal = (scores.sigmoid() - aims).square() * F.binary_cross_entropy_with_logits(scores, aims, reduction="none")
    places = generalized_box_iou_loss(found, wanted, reduction="sum") if len(found) else found.sum()
    return (focal.sum() + _BOX_WEIGHT * places) / count


def _owners(levels: Sequence[tuple[Tensor, Tensor]], one: Mapping[str, Tensor], images: Images) -> Tensor:
    """For each cell the object it shows, int64 (cells,), or -1."""
    found = []
    for scores, _ in levels:
        rows, columns = scores.shape[-2:]
        boxes = one["boxes"].to(scores.device)
        y, x = torch.meshgrid(torch.arange(rows) + 0.5, torch.arange(columns) + 0.5, indexing="ij")
        points = torch.stack([x.flatten() * images.width / columns, y.flatten() * images.height / rows], 1).to(scores.device)
        middles = (boxes[:, :2] + boxes[:, 2:]) / 2
        reach = torch.tensor([images.width / columns, images.height / rows], device=scores.device) * RADIUS
        near = ((points[:, None] - middles).abs() < reach).all(2)
        inside = (points[:, None] > boxes[:, :2]).all(2) & (points[:, None] < boxes[:, 2:]).all(2)
        # The cell in whose middle an object is answers for it however small it is.
        home = ((points[:, None] - middles).abs() <= reach / (2 * RADIUS)).all(2)
        eligible = ((near & inside) | home) & (one["iscrowd"].to(scores.device) == 0)
        sizes = torch.where(eligible, area(boxes)[None], torch.inf)
        if not len(boxes):
            found.append(torch.full((len(points),), -1, device=scores.device))
            continue
        least, owner = sizes.min(1)
        found.append(torch.where(torch.isfinite(least), owner, -1))
    return torch.cat(found)


def _iou(mine: Tensor, other: Tensor) -> Tensor:
    """Of boxes in pairs, (N,)."""
    corner, opposite = torch.maximum(mine[:, :2], other[:, :2]), torch.minimum(mine[:, 2:], other[:, 2:])
    shared = (opposite - corner).clamp(min=0).prod(1)
    return shared / (area(mine) + area(other) - shared).clamp(min=1e-9)
