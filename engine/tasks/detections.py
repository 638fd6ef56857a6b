"""What a detector says, whatever form its outputs have: boxes, classes and scores of each image."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from engine.errors import EngineError
from engine.tasks.outputs import normalized

# As COCO's own evaluation counts them (pycocotools, ``Params.maxDets``).
MOST = 100
LEAST_SCORE = 0.01
SAME_OBJECT = 0.6
_CANDIDATES = 1000


@dataclass(frozen=True, eq=False)
class Detections:
    """Of one image, best first: ``boxes`` float (N, 4), (x1, y1, x2, y2) in pixels; ``scores`` float (N,) in 0..1; ``labels`` int64 (N,),
    counted from 0."""

    boxes: Tensor
    scores: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Images:
    """What outputs are read by: the ``height`` and ``width`` of the model's images, and the number of ``classes``."""

    height: int
    width: int
    classes: int


@dataclass(frozen=True)
class Form:
    """One form of outputs. ``reads`` gives its parts from the raw outputs, None where they have another form; ``detections`` says what
    is in them, ``compared`` which tensors tell how close two models are."""

    name: str
    reads: Callable[[Any, Images], Any]
    detections: Callable[[Any, Images], list[Detections]]
    compared: Callable[[Any, Images], tuple[Tensor, ...]]


def recognized(raw: Any, images: Images) -> tuple[Form, Any]:
    """The form of raw outputs and its parts. Raises EngineError where they are none of ``FORMS``."""
    raw = normalized(raw)
    for form in FORMS:
        parts = form.reads(raw, images)
        if parts is not None:
            return form, parts
    raise EngineError(
        f"outputs of {_shape(raw)} are no boxes of {images.classes} classes: return scores (N, {images.classes}, H, W) and boxes "
        f"(N, 4, H, W); scores (N, A, {images.classes}) and boxes (N, A, 4); YOLO's (N, {4 + images.classes}, A); "
        "or torchvision's list of dicts"
    )


def _shape(raw: Any) -> str:
    shapes = [str(tuple(x.shape)) for x in torch.utils._pytree.tree_leaves(raw) if isinstance(x, Tensor)]
    return f"{type(raw).__name__} of {', '.join(shapes[:6]) or 'no tensor'}"


def detections(raw: Any, images: Images) -> list[Detections]:
    """What raw outputs say of each image, after suppression of what is found twice. Raises EngineError for outputs of an unknown form."""
    form, parts = recognized(raw, images)
    return form.detections(parts, images)


def cell_boxes(distances: Tensor, images: Images) -> Tensor:
    """Boxes in pixels, (N, H·W, 4), from distances (N, 4, H, W) in cells between the middle of a cell and the left, top, right and bottom
    side (Tian et al. 2019, arXiv:1904.01355, section 3.1)."""
    rows, columns = distances.shape[-2:]
    down, across = images.height / rows, images.width / columns
    y, x = torch.meshgrid(torch.arange(rows) + 0.5, torch.arange(columns) + 0.5, indexing="ij")
    middles = torch.stack([x, y]).to(distances.device)
    corners = torch.cat([middles - distances[:, :2], middles + distances[:, 2:]], 1)
    return corners.flatten(2).transpose(1, 2) * torch.tensor([across, down, across, down], device=distances.device)


def _pair(raw: Any) -> tuple[Tensor, Tensor] | None:
    """Scores and boxes, by name or in this order."""
    if isinstance(raw, Mapping):
        found = raw.get("scores", raw.get("logits")), raw.get("boxes", raw.get("pred_boxes"))
    elif isinstance(raw, tuple | list) and len(raw) == 2:
        found = raw[0], raw[1]
    else:
        return None
    scores, boxes = found
    return (scores, boxes) if isinstance(scores, Tensor) and isinstance(boxes, Tensor) else None


def _grid(raw: Any, images: Images) -> Any:
    """One pair of scores and boxes or a list of several, one for each size of cells."""
    levels = raw if isinstance(raw, tuple | list) and raw and all(_pair(one) for one in raw) else (raw,)
    pairs = [_pair(one) for one in levels]
    if all(pair and _is_grid(*pair, images) for pair in pairs):
        return [pair for pair in pairs if pair]
    return None


def _is_grid(scores: Tensor, boxes: Tensor, images: Images) -> bool:
    alike = scores.dim() == boxes.dim() == 4 and scores.shape[0] == boxes.shape[0] and scores.shape[2:] == boxes.shape[2:]
    return bool(alike and scores.shape[1] == images.classes and boxes.shape[1] == 4)


def _of_grid(pairs: Sequence[tuple[Tensor, Tensor]], images: Images) -> list[Detections]:
    scores = torch.cat([scores.flatten(2).transpose(1, 2) for scores, _ in pairs], 1).sigmoid()
    return _suppressed(torch.cat([cell_boxes(boxes, images) for _, boxes in pairs], 1), scores, images)


def _flat(raw: Any, images: Images) -> Any:
    """Logits (N, A, classes) and boxes (N, A, 4) in pixels. A query's own box in parts of the image (``pred_boxes``) is another form."""
    pair = None if isinstance(raw, Mapping) and "pred_boxes" in raw else _pair(raw)
    return pair if pair and _is_flat(*pair, images.classes) else None


def _is_flat(scores: Tensor, boxes: Tensor, classes: int) -> bool:
    return scores.dim() == boxes.dim() == 3 and scores.shape[:2] == boxes.shape[:2] and (scores.shape[2], boxes.shape[2]) == (classes, 4)


def _queries(raw: Any, images: Images) -> Any:
    """DETR's: logits (N, Q, classes + 1), the last of them for nothing, and boxes (cx, cy, w, h) in parts of the image."""
    pair = _pair(raw) if isinstance(raw, Mapping) and "pred_boxes" in raw else None
    return pair if pair and _is_flat(*pair, images.classes + 1) else None


def _of_queries(pair: tuple[Tensor, Tensor], images: Images) -> list[Detections]:
    size = torch.tensor([images.width, images.height] * 2, device=pair[1].device)
    probabilities = pair[0].softmax(-1)[..., :-1]
    return _suppressed(_corners(pair[1] * size), probabilities, images, overlap=1.0)


def _yolo(raw: Any, images: Images) -> Any:
    """(N, 4 + classes, A), alone or first of several: (cx, cy, w, h) in pixels and scores in 0..1, as ultralytics gives in eval mode; or
    (N, A, 6) after its own suppression: corners, score, class."""
    first = raw[0] if isinstance(raw, tuple | list) and raw else raw
    if not isinstance(first, Tensor) or first.dim() != 3:
        return None
    return first if first.shape[1] == 4 + images.classes or first.shape[2] == 6 else None


def _of_yolo(found: Tensor, images: Images) -> list[Detections]:
    if found.shape[1] == 4 + images.classes:
        rows = found.transpose(1, 2)
        return _suppressed(_corners(rows[..., :4]), rows[..., 4:], images)
    return [_best(one[:, :4], one[:, 4], one[:, 5].round().long()) for one in found]


def _listed(raw: Any, images: Images) -> Any:
    """torchvision's: for each image a dict of boxes, scores and labels, where label 0 is the background."""
    wanted = {"boxes", "scores", "labels"}
    fits = isinstance(raw, tuple | list) and all(isinstance(one, Mapping) and wanted <= one.keys() for one in raw)
    return raw if fits and raw else None


def _of_list(found: Sequence[Mapping[str, Tensor]], images: Images) -> list[Detections]:
    return [_best(one["boxes"], one["scores"], one["labels"].long() - 1) for one in found]


# Cells of the maps on which lists of boxes are compared.
_MAP = 32


def _maps(found: Any, images: Images) -> tuple[Tensor, ...]:
    """Lists of boxes of any length as a tensor (N, classes, 32, 32) that changes little where they do: each box lays its score on the
    part of every cell that it covers, and the highest counts. Boxes in another order are the same, and one that is gained or lost leaves
    its whole score as the difference. No gradient comes through: what was suppressed would have none."""
    return (torch.stack([_map(one, images) for one in _of_list(found, images)]).detach(),)


def _map(one: Detections, images: Images) -> Tensor:
    laid = torch.zeros(images.classes, _MAP, _MAP, device=one.scores.device)
    across = _covered(one.boxes[:, 0], one.boxes[:, 2], images.width)
    down = _covered(one.boxes[:, 1], one.boxes[:, 3], images.height)
    for i, label in enumerate(one.labels.tolist()):
        if 0 <= label < images.classes:
            laid[label] = torch.maximum(laid[label], one.scores[i] * down[i][:, None] * across[i][None])
    return laid


def _covered(begin: Tensor, end: Tensor, size: int) -> Tensor:
    """The part (0..1) of each cell of a side of ``size`` pixels between ``begin`` and ``end`` (N,); (N, cells)."""
    edges = torch.linspace(0, size, _MAP + 1, device=begin.device)
    shared = torch.minimum(end[:, None], edges[1:]) - torch.maximum(begin[:, None], edges[:-1])
    return shared.clamp(min=0) / (size / _MAP)


def _corners(boxes: Tensor) -> Tensor:
    """(cx, cy, w, h) as (x1, y1, x2, y2)."""
    middle, half = boxes[..., :2], boxes[..., 2:] / 2
    return torch.cat([middle - half, middle + half], -1)


def _suppressed(boxes: Tensor, scores: Tensor, images: Images, overlap: float = SAME_OBJECT) -> list[Detections]:
    """Of boxes (N, A, 4) and scores (N, A, classes) in 0..1 those of an image that are no object twice, each class for itself."""
    from torchvision.ops import batched_nms

    found = []
    size = torch.tensor([images.width, images.height] * 2, dtype=boxes.dtype, device=boxes.device)
    for places, rows in zip(boxes, scores, strict=True):
        values = rows.flatten()
        order = values.topk(min(_CANDIDATES, len(values))).indices
        order = order[values[order] > LEAST_SCORE]
        at, labels = order // images.classes, order % images.classes
        inside = places[at].clamp(min=0).minimum(size)
        kept = batched_nms(inside.float(), values[order].float(), labels, overlap)[:MOST]
        found.append(Detections(inside[kept], values[order][kept], labels[kept]))
    return found


def _best(boxes: Tensor, scores: Tensor, labels: Tensor) -> Detections:
    order = scores.argsort(descending=True, stable=True)[:MOST]
    return Detections(boxes[order], scores[order], labels[order])


FORMS = (
    Form("cells", _grid, _of_grid, lambda pairs, images: tuple(tensor for pair in pairs for tensor in pair)),
    Form("list", _listed, _of_list, _maps),
    Form("queries", _queries, _of_queries, lambda pair, images: pair),
    Form("boxes", _flat, lambda pair, images: _suppressed(pair[1], pair[0].sigmoid(), images), lambda pair, images: pair),
    Form("YOLO", _yolo, _of_yolo, lambda found, images: (found,)),
)
