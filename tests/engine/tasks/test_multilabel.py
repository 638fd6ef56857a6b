"""Labels of images: the metrics against public packages, and the way from a named model to a report."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from driving import untimed
from sklearn.metrics import average_precision_score, f1_score
from torch import Tensor
from torchmetrics.classification import MultilabelAveragePrecision, MultilabelF1Score

import engine
from engine.data.items import ItemData, Items, MemoryItems
from engine.errors import EngineError
from engine.recipe.recipe import Recipe
from engine.tasks.base import Batch
from engine.tasks.multilabel import Multilabel, Ranking, weighted_precision


def drawn(images: int = 40, labels: int = 4) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(0)
    targets = (torch.rand(images, labels, generator=draw) < 0.4).float()
    # Rounded, so that scores are equal here and there.
    return (torch.randn(images, labels, generator=draw) * 2 + 2 * targets - 1).round(), targets


def ranking(outputs: Tensor, targets: Tensor) -> Ranking:
    found = Ranking()
    for begin in range(0, len(outputs), 16):
        found.update(outputs[begin : begin + 16], targets[begin : begin + 16])
    return found


def task(targets: Tensor) -> Multilabel:
    split = MemoryItems(Items(torch.zeros(len(targets), 3, 8, 8), targets))
    return Multilabel(ItemData("made", split, split, split, targets.shape[1], tuple(f"l{i}" for i in range(targets.shape[1]))))


def test_metrics_are_those_of_scikit_learn_and_torchmetrics() -> None:
    outputs, targets = drawn()
    found = ranking(outputs, targets).compute()
    assert found["mAP"].value == pytest.approx(average_precision_score(targets, outputs, average="macro"))
    assert found["mAP"].value == pytest.approx(float(MultilabelAveragePrecision(4)(outputs, targets.long())))
    assert found["F1"].value == pytest.approx(f1_score(targets, outputs > 0, average="macro"))
    assert found["F1"].value == pytest.approx(float(MultilabelF1Score(4)(outputs, targets)))
    assert found["mAP"].low is not None and found["mAP"].low < found["mAP"].value < (found["mAP"].high or 0)


def test_one_label_and_labels_that_never_hold_are_measured() -> None:
    outputs, targets = drawn()
    found = ranking(outputs[:, :1], targets[:, :1]).compute()
    assert found["mAP"].value == pytest.approx(average_precision_score(targets[:, 0], outputs[:, 0]))
    targets[:, 3] = 0
    found = ranking(outputs, targets).compute()
    assert found["mAP"].value == pytest.approx(0.75 * average_precision_score(targets[:, :3], outputs[:, :3], average="macro"))
    assert found["mAP"].low is not None and found["mAP"].low < found["mAP"].value < (found["mAP"].high or 0)
    assert found["F1"].value == pytest.approx(f1_score(targets, outputs > 0, average="macro", zero_division=0))


def test_a_resample_is_what_scikit_learn_gives_for_items_drawn_so_often() -> None:
    outputs, targets = drawn()
    times = torch.from_numpy(np.random.RandomState(0).multinomial(40, [1 / 40] * 40, 6)).double()
    found = weighted_precision(outputs, targets, times)
    for row, weights in zip(found, times, strict=True):
        assert float(row) == pytest.approx(average_precision_score(targets, outputs, average="macro", sample_weight=weights.numpy()))


def test_probabilities_are_told_from_logits() -> None:
    outputs, targets = drawn()
    logits, parts = ranking(outputs, targets).compute(), ranking(outputs.double().sigmoid(), targets).compute()
    assert {k: v.value for k, v in logits.items()} == pytest.approx({k: v.value for k, v in parts.items()})
    made = task(targets)
    assert torch.allclose(made.loss(outputs, targets), made.loss(outputs.sigmoid(), targets), rtol=1e-4)
    same = ranking(outputs.double().sigmoid(), targets).difference_error(ranking(outputs, targets))
    assert same == pytest.approx(0.0, abs=1e-12)


def test_each_image_has_its_labels_in_words() -> None:
    _, targets = drawn(3)
    targets = torch.tensor([[1.0, 0, 1, 0], [0, 0, 0, 0], [1, 1, 0, 0]])
    outputs = torch.tensor([[2.0, -1, 3, -1], [-1, -2, -3, -1], [1, -1, 4, -1]])
    answers = task(targets).item_answers(outputs, Batch((), targets=targets, count=3))
    assert [(a.words, a.label, a.score) for a in answers] == [("l0, l2", "l0, l2", 1.0), ("none", "none", 1.0), ("l0, l2", "l0, l1", 1 / 3)]


def test_a_head_of_other_labels_is_told() -> None:
    outputs, targets = drawn(8)
    with pytest.raises(EngineError, match=r"m returns \(8, 3\) for 8 images, and made has labels \(8, 4\)"):
        task(targets).check((outputs[:, :3],), Batch((), targets=targets, count=8), "m")


def test_a_model_of_the_list_brings_its_data_and_its_weights(tmp_path: Path) -> None:
    with untimed():
        report = engine.quantize(Recipe.make(model="tinycnn"), tmp_path / "run").data
    assert report["task"] == "multilabel" and report["data"]["name"] == "digit-attributes"
    metrics = report["metrics"]
    assert metrics["fp32"]["mAP"]["value"] > 0.98
    assert abs(metrics["ptq"]["mAP"]["value"] - metrics["fp32"]["mAP"]["value"]) < 0.01
    assert all("fp32" not in layer["kernel"] for layer in report["layers"])
