"""Mean average precision by pycocotools, with an interval and a paired error from a bootstrap over the images."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
from torch import Tensor

from engine.errors import EngineError
from engine.tasks import pooling
from engine.tasks.detections import MOST, Detections
from engine.tasks.intervals import LEAST
from engine.tasks.metrics import MetricValue

MAP, MAP_50 = "mAP 50:95", "mAP 50"
PACKAGE = "mean average precision needs pycocotools: uv pip install pycocotools"
RESAMPLES = 100

Array = npt.NDArray[Any]


def require() -> None:
    """Raises EngineError where pycocotools is not installed."""
    try:
        import pycocotools.cocoeval  # noqa: F401
    except ImportError:
        raise EngineError(PACKAGE) from None


@dataclass(frozen=True)
class _Class:
    """Detections of one class on all images, best first: ``image`` (D,) is where each was found, ``hit`` and ``miss`` (T, D) whether it
    counts for or against, at each IoU; ``objects`` (images,) counts what there is to be found."""

    image: Array
    hit: Array
    miss: Array
    objects: Array


class AveragePrecision:
    """Detections and targets of one split, judged as COCO does: IoU 0.50 to 0.95, at most 100 boxes an image and class.

    The areas of objects play no part. An object with ``iscrowd`` counts neither for nor against. Raises EngineError without pycocotools."""

    pooled: ClassVar[Mapping[str, pooling.How]] = {"_found": "sum", "_targets": "sum"}

    def __init__(self, classes: int) -> None:
        require()
        self._classes = classes
        self._found: list[Detections] = []
        self._targets: list[Mapping[str, Tensor]] = []
        self._precision: Array | None = None
        self._by_class: list[_Class] = []

    def update(self, found: Sequence[Detections], targets: Sequence[Mapping[str, Tensor]]) -> None:
        """One batch: what was found on each image, and what is there. Raises ValueError where these are of other numbers of images."""
        if len(found) != len(targets):
            raise ValueError(f"{len(found)} images of detections and {len(targets)} of targets")
        self._found += [Detections(one.boxes.cpu(), one.scores.cpu(), one.labels.cpu()) for one in found]
        self._targets += [{key: value.cpu() for key, value in one.items()} for one in targets]
        self._precision = None

    def compute(self) -> Mapping[str, MetricValue]:
        """``mAP 50:95`` and ``mAP 50``, parts (0..1), with 95 % percentile intervals for eight images or more."""
        self._evaluate()
        assert self._precision is not None
        both = np.array([_mean(self._precision), _mean(self._precision[:1])])
        if len(self._targets) < LEAST:
            return {MAP: MetricValue(float(both[0])), MAP_50: MetricValue(float(both[1]))}
        drawn = self._resampled()
        low, high = np.quantile(drawn, [0.025, 0.975], axis=0)
        return {
            name: MetricValue(float(value), float(least), float(most))
            for name, value, least, most in zip((MAP, MAP_50), both, low, high, strict=True)
        }

    def details(self) -> dict[str, Any]:
        """How the intervals were made."""
        return {"bootstrap": RESAMPLES} if len(self._targets) >= LEAST else {}

    def difference_error(self, reference: AveragePrecision) -> float | None:
        """The standard error of the difference in mAP 50:95 from ``reference``, both on the same drawn images; None for fewer than
        eight."""
        if len(self._targets) < LEAST or len(self._targets) != len(reference._targets):
            return None
        self._evaluate()
        reference._evaluate()
        return float((self._resampled()[:, 0] - reference._resampled()[:, 0]).std(ddof=1))

    def _evaluate(self) -> None:
        if self._precision is not None:
            return
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval

        # It prints what it does.
        with contextlib.redirect_stdout(io.StringIO()):
            truth, found = COCO(), COCO()
            images = [{"id": i} for i in range(len(self._targets))]
            categories = [{"id": i} for i in range(self._classes)]
            truth.dataset = {"images": images, "categories": categories, "annotations": _objects(self._targets)}
            found.dataset = {"images": images, "categories": categories, "annotations": _answers(self._found)}
            truth.createIndex()
            found.createIndex()
            judge = COCOeval(truth, found, "bbox")
            judge.params.imgIds = list(range(len(images)))
            judge.params.catIds = list(range(self._classes))
            judge.params.areaRng, judge.params.areaRngLbl = [[0, 1e10]], ["all"]
            judge.params.maxDets = [MOST]
            judge.evaluate()
            judge.accumulate()
        self._precision = judge.eval["precision"][:, :, :, 0, 0]
        self._by_class = _by_class(judge, len(images))
        self._recalls = judge.params.recThrs
        self._drawn: Array | None = None

    def _resampled(self) -> Array:
        """Both metrics of images drawn with replacement, (resamples, 2), by a fixed seed: the same draws for every model."""
        if self._drawn is None:
            count = len(self._targets)
            random = np.random.RandomState(0)
            times = [np.bincount(random.randint(count, size=count), minlength=count) for _ in range(RESAMPLES)]
            self._drawn = np.array([_weighted(self._by_class, weight, self._recalls) for weight in times])
        return self._drawn


def _weighted(classes: Sequence[_Class], times: Array, recalls: Array) -> tuple[float, float]:
    """Both metrics where image i counts ``times[i]``, as ``COCOeval.accumulate`` computes them.

    A detection that counts twice is two of the same score: the precision after the first of them is never above that of both."""
    found = []
    for one in classes:
        objects = int(one.objects @ times)
        if not objects:
            continue
        weight = times[one.image]
        hits, misses = (one.hit * weight).cumsum(1), (one.miss * weight).cumsum(1)
        precision = hits / np.maximum(hits + misses, np.spacing(1))
        precision = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
        rows = []
        for level, reached in zip(precision, hits / objects, strict=True):
            places = np.searchsorted(reached, recalls, side="left")
            rows.append(np.append(level, 0.0)[places].mean())
        found.append(rows)
    if not found:
        return np.nan, np.nan
    values = np.array(found)
    return float(values.mean()), float(values[:, 0].mean())


def _by_class(judge: Any, images: int) -> list[_Class]:
    """What ``COCOeval.evaluate`` matched."""
    results = judge.evalImgs
    levels = len(judge.params.iouThrs)
    found = []
    for place in range(len(judge.params.catIds)):
        rows = [(i, row) for i, row in enumerate(results[place * images : (place + 1) * images]) if row is not None]
        objects = np.zeros(images, dtype=np.int64)
        for i, row in rows:
            objects[i] = int((np.asarray(row["gtIgnore"]) == 0).sum())
        image = np.concatenate([np.full(len(row["dtScores"]), i) for i, row in rows] or [np.zeros(0, dtype=np.int64)]).astype(np.int64)
        scores = np.concatenate([np.asarray(row["dtScores"], dtype=np.float64) for _, row in rows] or [np.zeros(0)])
        matched = np.concatenate([row["dtMatches"].reshape(levels, -1) for _, row in rows] or [np.zeros((levels, 0))], axis=1) != 0
        ignored = np.concatenate([row["dtIgnore"].reshape(levels, -1) for _, row in rows] or [np.zeros((levels, 0))], axis=1) != 0
        order = np.argsort(-scores, kind="mergesort")
        hit, miss = matched & ~ignored, ~matched & ~ignored
        found.append(_Class(image[order], hit[:, order].astype(np.float64), miss[:, order].astype(np.float64), objects))
    return found


def _objects(targets: Sequence[Mapping[str, Tensor]]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for image, one in enumerate(targets):
        crowds = one["iscrowd"].tolist() if "iscrowd" in one else [0] * len(one["labels"])
        for box, label, crowd in zip(one["boxes"].double().tolist(), one["labels"].tolist(), crowds, strict=True):
            found.append(_entry(len(found), image, box, label) | {"iscrowd": int(crowd)})
    return found


def _answers(found: Sequence[Detections]) -> list[dict[str, Any]]:
    answers: list[dict[str, Any]] = []
    for image, one in enumerate(found):
        for box, score, label in zip(one.boxes.double().tolist(), one.scores.double().tolist(), one.labels.tolist(), strict=True):
            answers.append(_entry(len(answers), image, box, label) | {"score": score, "iscrowd": 0})
    return answers


def _entry(number: int, image: int, box: Sequence[float], label: int) -> dict[str, Any]:
    x1, y1, x2, y2 = box
    # An id of 0 reads as no match.
    return {"id": number + 1, "image_id": image, "category_id": label, "bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1)}


def _mean(precision: Array) -> float:
    """Over what there is to be found: a class without objects has -1."""
    known = precision[precision > -1]
    return float(known.mean()) if len(known) else 0.0
