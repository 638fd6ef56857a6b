"""Detection: the metric against torchmetrics', every form of outputs, what two models disagree on, and a run to the exported file."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import engine
from engine.data.boxes import digit_boxes
from engine.data.boxes.base import target
from engine.data.boxes.folder import load as load_folder
from engine.data.items import ItemData
from engine.errors import EngineError, UsageError
from engine.events.cancellation import StopToken
from engine.lowering.base import NotWhole
from engine.lowering.graph.trace import trace
from engine.models.registry import find
from engine.models.torchvision_detectors import DETECTORS
from engine.recipe.recipe import DataPart, Recipe
from engine.tasks import average_precision, detection_loss
from engine.tasks.average_precision import MAP, MAP_50, AveragePrecision
from engine.tasks.base import Batch
from engine.tasks.box_changes import agreeing, answer_changes, box_changes
from engine.tasks.detection import Detection
from engine.tasks.detections import Detections, Images, cell_boxes, detections, recognized
from engine.tasks.evaluate import evaluate
from engine.training.task_model import measured

SQUARE = Images(64, 64, 10)


def _random(images: int, seed: int, classes: int = 4) -> tuple[list[Detections], list[dict[str, Tensor]]]:
    """Targets with some crowds, and detections near to them, moved, missed or made up."""
    draw = torch.Generator().manual_seed(seed)
    found, wanted = [], []
    for _ in range(images):
        count = int(torch.randint(0, 6, (1,), generator=draw))
        corner = torch.rand(count, 2, generator=draw) * 40
        boxes = torch.cat([corner, corner + 6 + torch.rand(count, 2, generator=draw) * 18], 1)
        labels = torch.randint(classes, (count,), generator=draw)
        wanted.append(target(boxes, labels, (torch.rand(count, generator=draw) < 0.15).long()))
        keep = torch.rand(count, generator=draw) < 0.8
        near = boxes[keep] + torch.randn(int(keep.sum()), 4, generator=draw)
        extra = torch.rand(2, 2, generator=draw) * 40
        more = torch.cat([extra, extra + 10], 1)
        all_boxes, all_labels = torch.cat([near, more]), torch.cat([labels[keep], torch.randint(classes, (2,), generator=draw)])
        found.append(Detections(all_boxes, torch.rand(len(all_boxes), generator=draw), all_labels))
    return found, wanted


def _torchmetrics(found: Sequence[Detections], wanted: Sequence[dict[str, Tensor]]) -> tuple[float, float]:
    from torchmetrics.detection import MeanAveragePrecision

    # Its own steps are rounded to float32, which moves a recall of exactly 0.6 to the other side of its threshold; these are COCO's.
    overlaps, recalls = np.linspace(0.5, 0.95, 10).tolist(), np.linspace(0, 1, 101).tolist()
    metric = MeanAveragePrecision(backend="pycocotools", iou_thresholds=overlaps, rec_thresholds=recalls)
    metric.update([{"boxes": one.boxes, "scores": one.scores, "labels": one.labels} for one in found], list(wanted))
    values = metric.compute()
    return float(values["map"]), float(values["map_50"])


@pytest.mark.parametrize("seed", range(3))
def test_average_precision_is_that_of_torchmetrics(seed: int) -> None:
    found, wanted = _random(24, seed)
    judge = AveragePrecision(4)
    for begin in range(0, 24, 7):
        judge.update(found[begin : begin + 7], wanted[begin : begin + 7])
    values = judge.compute()
    expected = _torchmetrics(found, wanted)
    assert (values[MAP].value, values[MAP_50].value) == pytest.approx(expected, abs=1e-7)
    assert values[MAP].low is not None and values[MAP].high is not None and values[MAP].low < expected[0] < values[MAP].high
    assert judge.details() == {"bootstrap": average_precision.RESAMPLES}


def test_a_drawn_sample_counts_as_the_images_themselves_would() -> None:
    """An image that is drawn twice is two images to torchmetrics."""
    found, wanted = _random(12, 5)
    judge = AveragePrecision(4)
    judge.update(found, wanted)
    judge.compute()
    times = np.random.RandomState(1).multinomial(12, np.ones(12) / 12)
    assert times.max() > 1 and times.min() == 0
    drawn = [i for i, count in enumerate(times) for _ in range(count)]
    mine = average_precision._weighted(judge._by_class, times, judge._recalls)
    assert mine == pytest.approx(_torchmetrics([found[i] for i in drawn], [wanted[i] for i in drawn]), abs=1e-7)


def test_the_error_of_a_difference_is_that_of_the_same_draws() -> None:
    found, wanted = _random(16, 2)
    same, other, worse = (AveragePrecision(4) for _ in range(3))
    same.update(found, wanted)
    other.update(found, wanted)
    worse.update([Detections(one.boxes + 4, one.scores, one.labels) for one in found], wanted)
    assert same.difference_error(other) == 0
    error = worse.difference_error(same)
    assert error is not None and 0 < error < 0.2


def test_a_missing_pycocotools_is_told_before_any_work(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "pycocotools.cocoeval", None)
    with pytest.raises(EngineError, match="mean average precision needs pycocotools: uv pip install pycocotools"):
        engine.quantize(Recipe.make(model="tiny-detector"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_nothing_found_and_nothing_there_are_no_mistake_of_the_program() -> None:
    none = Detections(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.long))
    judge = AveragePrecision(2)
    judge.update([none] * 9, [target([[1, 1, 5, 5]], [0])] + [target([], [])] * 8)
    assert judge.compute()[MAP].value == 0


def _one(label: int, box: Sequence[float], forms: str) -> Any:
    """One object in each form of outputs: class ``label`` at ``box``, nothing elsewhere."""
    x1, y1, x2, y2 = box
    if forms == "list":
        return [{"boxes": torch.tensor([box]), "scores": torch.tensor([0.9]), "labels": torch.tensor([label + 1])}]
    if forms == "cells":
        scores, boxes = torch.full((1, 10, 8, 8), -9.0), torch.zeros(1, 4, 8, 8)
        row, column = int((y1 + y2) / 16), int((x1 + x2) / 16)
        scores[0, label, row, column] = 3.0
        middle = torch.tensor([(column + 0.5) * 8, (row + 0.5) * 8])
        corners = torch.tensor(box)
        boxes[0, :, row, column] = torch.cat([middle - corners[:2], corners[2:] - middle]) / 8
        return {"scores": scores, "boxes": boxes}
    scores, boxes = torch.full((1, 5, 10), -9.0), torch.zeros(1, 5, 4)
    scores[0, 2, label], boxes[0, 2] = 3.0, torch.tensor(box)
    if forms == "boxes":
        return scores, boxes
    middle = torch.cat([(boxes[..., :2] + boxes[..., 2:]) / 2, boxes[..., 2:] - boxes[..., :2]], 2)
    if forms == "queries":
        nothing = torch.full((1, 5, 1), 0.0)
        nothing[0, 2] = -9
        return {"logits": torch.cat([scores, nothing], 2), "pred_boxes": middle / 64}
    if forms == "YOLO":
        return torch.cat([middle, scores.sigmoid()], 2).transpose(1, 2), [torch.zeros(1, 3)]
    return torch.tensor([[[*box, 0.9, label], [0, 0, 0, 0, 0, 0]]])


@pytest.mark.parametrize("form", ["cells", "boxes", "queries", "YOLO", "YOLO after suppression", "list"])
def test_each_form_of_outputs_says_the_same(form: str) -> None:
    box = (10.0, 12.0, 30.0, 40.0)
    (found,) = detections(_one(4, box, form), SQUARE)
    assert found.labels[0] == 4 and found.scores[0] > 0.8
    assert torch.allclose(found.boxes[0], torch.tensor(box), atol=1e-3)
    assert recognized(_one(4, box, form), SQUARE)[0].name == form.split()[0]


def test_one_object_that_several_cells_see_is_found_once() -> None:
    raw = _one(4, (10.0, 12.0, 30.0, 40.0), "cells")
    raw["scores"][0, 4, 3, 3] = 2.0
    raw["boxes"][0, :, 3, 3] = torch.tensor([28 - 10, 28 - 12, 30 - 28, 40 - 28]) / 8
    (found,) = detections(raw, SQUARE)
    assert len(found.labels) == 1


def test_outputs_of_no_known_form_are_refused_in_one_line() -> None:
    for raw in (torch.zeros(2, 3), (torch.zeros(2, 9, 4, 4), torch.zeros(2, 4, 4, 4)), None, []):
        with pytest.raises(EngineError, match=r"are no boxes of 10 classes: return scores \(N, 10, H, W\)"):
            detections(raw, SQUARE)


def test_lists_of_boxes_are_compared_whatever_their_order_and_number() -> None:
    data = _stub()
    task = Detection(data)
    boxes = torch.tensor([[2.0, 2, 20, 20], [30, 30, 60, 50], [5, 40, 15, 60]])
    scores, labels = torch.tensor([0.9, 0.7, 0.6]), torch.tensor([1, 3, 3])
    whole = [{"boxes": boxes, "scores": scores, "labels": labels}]
    turned = [{"boxes": boxes.flip(0), "scores": scores.flip(0), "labels": labels.flip(0)}]
    fewer = [{"boxes": boxes[:2], "scores": scores[:2], "labels": labels[:2]}]
    none = [{"boxes": boxes[:0], "scores": scores[:0], "labels": labels[:0]}]
    near = [{"boxes": boxes + 0.1, "scores": scores, "labels": labels}]
    maps = {name: task.outputs(raw)[0] for name, raw in locals().items() if name in ("whole", "turned", "fewer", "none", "near")}
    assert {one.shape for one in maps.values()} == {(1, 10, 32, 32)}
    assert torch.equal(maps["whole"], maps["turned"]) and not maps["none"].any()
    far = {name: float((one - maps["whole"]).square().sum()) for name, one in maps.items()}
    assert 0 < far["near"] < 0.1 * far["fewer"] < far["none"]


def _stub() -> ItemData:
    from engine.data.boxes.base import MemoryImages

    split = MemoryImages(torch.zeros(3, 3, 64, 64, dtype=torch.uint8), tuple(target([[8, 8, 40, 40]], [i]) for i in range(3)))
    return ItemData("stub", split, split, split, 10, tuple("0123456789"), {"size": [64, 64]})


def test_the_loss_is_least_where_cells_say_what_is_there() -> None:
    targets = [target([[8, 8, 40, 40], [44, 4, 60, 30]], [1, 7]), target([], [])]
    scores, boxes = torch.full((2, 10, 8, 8), -12.0), torch.ones(2, 4, 8, 8)
    owners = torch.stack([detection_loss._owners([(scores, boxes)], one, SQUARE) for one in targets]).view(2, 8, 8)
    assert (owners[1] == -1).all() and set(owners[0].unique().tolist()) == {-1, 0, 1}
    for i in range(2):
        for row, column in (owners[0] == i).nonzero().tolist():
            scores[0, targets[0]["labels"][i], row, column] = 12.0
            middle = torch.tensor([column + 0.5, row + 0.5]) * 8
            box = targets[0]["boxes"][i]
            boxes[0, :, row, column] = torch.cat([middle - box[:2], box[2:] - middle]) / 8
    best = detection_loss.loss([(scores, boxes)], targets, SQUARE)
    assert best < 1e-3
    assert detection_loss.loss([(scores, boxes + 0.5)], targets, SQUARE) > best + 0.1
    assert detection_loss.loss([(scores.roll(1, 1), boxes)], targets, SQUARE) > best + 1
    empty = [target([], []), target([[1, 1, 9, 9]], [0], [1])]
    assert torch.isfinite(detection_loss.loss([(scores, boxes)], empty, SQUARE))


def test_distances_of_cells_become_boxes_in_pixels() -> None:
    distances = torch.zeros(1, 4, 2, 4)
    distances[0, :, 1, 2] = torch.tensor([1.0, 0.5, 0.5, 0.25])
    boxes = cell_boxes(distances, Images(32, 64, 1))[0].view(2, 4, 4)
    # Cells of 16×16 pixels: the middle of this one is at x 40, y 24.
    assert boxes[1, 2].tolist() == [24, 16, 48, 28]


def _found(rows: Sequence[tuple[tuple[float, ...], float, int]]) -> Detections:
    return Detections(
        torch.tensor([box for box, _, _ in rows]).reshape(-1, 4),
        torch.tensor([s for _, s, _ in rows]),
        torch.tensor([c for _, _, c in rows]),
    )


def test_boxes_that_are_gained_lost_and_relabelled_are_told_apart() -> None:
    before = _found([((0, 0, 10, 10), 0.9, 1), ((20, 20, 30, 30), 0.8, 2), ((40, 40, 60, 60), 0.7, 3)])
    after = _found([((1, 0, 10, 10), 0.85, 1), ((41, 40, 60, 60), 0.6, 5), ((0, 40, 9, 50), 0.9, 4)])
    found = [(change.kind, change.label, change.before) for change in box_changes(before, after)]
    assert found == [("lost", 2, None), ("gained", 4, None), ("relabelled", 5, 3)]
    assert box_changes(before, before) == ()
    assert agreeing(before, after) == pytest.approx(1 / 5)
    nothing = _found([])
    assert agreeing(nothing, nothing) == 1 and agreeing(before, nothing) == 0
    assert [change.kind for change in box_changes(nothing, before)] == ["gained"] * 3


def test_each_image_has_an_answer_that_a_person_reads() -> None:
    task = Detection(_stub())
    batch = next(task.batches("test", batch=1))
    (right,) = task.item_answers(_one(0, (8.0, 8.0, 40.0, 40.0), "cells"), batch)
    assert right.words == "0" and right.label == "0" and right.score == 1 and right.boxes is not None and len(right.boxes) == 1
    (wrong,) = task.item_answers(_one(5, (8.0, 8.0, 40.0, 40.0), "cells"), batch)
    assert [(c.kind, c.label, c.before, c.score) for c in answer_changes(right, wrong)] == [("relabelled", 5, 0, None)]
    assert answer_changes(right, replace(wrong, boxes=None)) == ()
    assert wrong.score == 0 and wrong.classes is not None and wrong.classes.tolist() == [5]


class _Lists(nn.Module):
    """As torchvision's: a list of dicts, here of other lengths each time."""

    def __init__(self, kept: int) -> None:
        super().__init__()
        self.kept = kept

    def forward(self, images: Tensor) -> list[dict[str, Tensor]]:
        boxes = torch.tensor([[8.0, 8, 40, 40], [2, 2, 30, 30]])[: self.kept]
        return [{"boxes": boxes, "scores": torch.full((self.kept,), 0.8), "labels": torch.full((self.kept,), 1)} for _ in images]


def test_models_that_find_other_numbers_of_boxes_are_measured_against_each_other() -> None:
    task = Detection(_stub())
    forms = {"none": _Lists(0), "two": _Lists(2)}
    steps = evaluate(
        task, {name: (lambda part, m=m: m(*part.args)) for name, m in forms.items()}, lambda part: _Lists(1)(*part.args), "test",
        batch=2, stop=StopToken(),
    )  # fmt: skip
    while True:
        try:
            next(steps)
        except StopIteration as end:
            results = end.value
            break
    assert results["none"].value == 0 and results["reference"].value > 0
    assert results["none"].closeness.sqnr_db == pytest.approx(0) and 0 < results["two"].closeness.sqnr_db < 20


def test_a_model_that_gives_a_list_for_each_image_is_no_graph_and_is_left_to_its_islands() -> None:
    class Boxes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Conv2d(3, 4, 3)

        def forward(self, images: Tensor) -> list[dict[str, Tensor]]:
            return [{"boxes": one.flatten(1).mean(1)[None] if one.sum() < 1e9 else one} for one in self.body(images)]

    with pytest.raises(NotWhole, match="another number of tensors for another number of items"):
        trace(Boxes().eval(), Batch((torch.rand(3, 3, 16, 16),), count=3))


@pytest.mark.parametrize("name", ["fasterrcnn_mobilenet_v3_large_320_fpn", "ssdlite320_mobilenet_v3_large", "fcos_resnet50_fpn"])
def test_detectors_of_torchvision_are_measured_and_give_their_own_losses(name: str) -> None:
    torch.manual_seed(0)
    task, model = Detection(_stub()), find(name).build(10)
    task.prepare(model)
    assert 0 <= measured(model.eval(), task, "test", 3, StopToken()) <= 1
    assert not next(task.training_batches(batch=3, limit=3, seed=0)).kwargs
    end = task.begin_training(model)
    batch = next(task.training_batches(batch=3, limit=3, seed=0))
    assert batch.kwargs["targets"][0]["labels"].tolist() == [int(batch.targets[0]["labels"][0]) + 1]
    loss = task.loss(model.train()(*batch.args, **batch.kwargs), batch.targets)
    assert loss is not None and torch.isfinite(loss) and loss > 0
    end()
    assert not next(task.training_batches(batch=3, limit=3, seed=0)).kwargs


def test_detectors_that_learn_more_than_boxes_say_so() -> None:
    assert all(find(name).task == "detection" for name in DETECTORS)
    task, model = Detection(_stub()), find("maskrcnn_resnet50_fpn").build(10)
    task.prepare(model)
    task.begin_training(model)
    with pytest.raises(EngineError, match="learns masks too"):
        next(task.training_batches(batch=3, limit=3, seed=0))


def _suppressed(boxes: np.ndarray, scores: np.ndarray, labels: np.ndarray, overlap: float = 0.6) -> list[int]:
    """Greedy suppression, written for this test alone."""
    kept: list[int] = []
    for i in np.argsort(-scores, kind="stable"):
        clear = True
        for j in kept:
            if labels[i] == labels[j]:
                shared = np.prod(np.clip(np.minimum(boxes[i, 2:], boxes[j, 2:]) - np.maximum(boxes[i, :2], boxes[j, :2]), 0, None))
                union = np.prod(boxes[i, 2:] - boxes[i, :2]) + np.prod(boxes[j, 2:] - boxes[j, :2]) - shared
                clear &= bool(shared / union <= overlap)
        if clear:
            kept.append(int(i))
    return kept[:100]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    pytest.importorskip("onnxruntime")
    out = tmp_path_factory.mktemp("detection") / "run"
    recipe = Recipe.make(model="tiny-detector", export=("onnx",), data={"name": "digit-boxes", "limit": 120, "calibration": 256})
    return out, engine.quantize(recipe, out).data


def test_int8_finds_what_fp32_finds_and_all_layers_are_integers(finished: tuple[Path, dict[str, Any]]) -> None:
    report = finished[1]
    assert report["task"] == "detection" and report["data"]["size"] == [64, 64]
    fp32, ptq = (report["metrics"][form] for form in ("fp32", "ptq"))
    assert fp32[MAP_50]["value"] > 0.9 and abs(fp32[MAP]["value"] - ptq[MAP]["value"]) < 0.01
    assert fp32[MAP]["low"] < fp32[MAP]["value"] < fp32[MAP]["high"]
    assert all("fp32" not in layer["kernel"] for layer in report["layers"])


def test_the_onnx_file_has_the_average_precision_that_was_measured(finished: tuple[Path, dict[str, Any]]) -> None:
    """From the file to the metric without any code of the program."""
    import onnxruntime

    out, report = finished
    session = onnxruntime.InferenceSession(out / "model.onnx")
    names = [output.name for output in session.get_outputs()]
    items = digit_boxes.load(DataPart(name="digit-boxes")).test.read(range(120))
    found = []
    for image in items.inputs:
        values = dict(zip(names, session.run(None, {session.get_inputs()[0].name: image[None].numpy()}), strict=True))
        scores = next(v for v in values.values() if v.shape[1] == 10)[0]
        boxes = next(v for v in values.values() if v.shape[1] == 4)[0]
        probability = 1 / (1 + np.exp(-scores))
        labels, rows, columns = np.nonzero(probability > 0.01)
        left, top, right, bottom = boxes[:, rows, columns] * 8
        x, y = columns * 8 + 4, rows * 8 + 4
        corners = np.clip(np.stack([x - left, y - top, x + right, y + bottom], 1), 0, 64)
        value = probability[labels, rows, columns]
        kept = _suppressed(corners, value, labels)
        found.append(Detections(*(torch.from_numpy(part[kept]) for part in (corners, value, labels))))
    expected = _torchmetrics(found, items.targets)
    ptq = report["metrics"]["ptq"]
    assert expected == pytest.approx((ptq[MAP]["value"], ptq[MAP_50]["value"]), abs=0.002)


def test_a_model_of_the_list_for_other_data_is_told_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="tiny-detector is for detection"):
        engine.quantize(Recipe.make(model="tiny-detector", task="regression"), tmp_path / "run")
    with pytest.raises(EngineError, match="holds no boxes"):
        load_folder(tmp_path, DataPart(name=str(tmp_path)))


def test_batches_keep_each_image_with_its_own_boxes() -> None:
    task = Detection(_stub())
    (batch,) = task.batches("test", batch=3)
    assert isinstance(batch, Batch) and [int(one["labels"][0]) for one in batch.items([2, 0]).targets] == [2, 0]
