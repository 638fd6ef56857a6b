"""Numbers predicted of items: the metrics, and the way from a named model to a report."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from driving import untimed
from sklearn.metrics import mean_absolute_error, r2_score
from torch import nn

import engine
from engine.data.items import ItemData, Items, MemoryItems
from engine.errors import UsageError
from engine.events.cancellation import StopToken
from engine.events.progress import quietly
from engine.recipe.recipe import Recipe
from engine.runs import pipeline
from engine.tasks.base import Batch
from engine.tasks.regression import Errors, Regression


@pytest.mark.parametrize("columns", [1, 3])
def test_metrics_are_those_of_scikit_learn(columns: int) -> None:
    torch.manual_seed(0)
    targets = torch.randn(40, columns) * 5 + 2
    outputs = targets + torch.randn(40, columns)
    errors = Errors()
    for begin in range(0, 40, 16):
        errors.update(outputs[begin : begin + 16], targets[begin : begin + 16])
    found = errors.compute()
    assert found["MAE"].value == pytest.approx(mean_absolute_error(targets, outputs))
    if columns == 1:
        assert found["R²"].value == pytest.approx(r2_score(targets, outputs))
    assert found["MAE"].low is not None and found["MAE"].low < found["MAE"].value < (found["MAE"].high or 0)


def test_a_model_of_the_list_brings_its_task_its_data_and_its_weights(tmp_path: Path) -> None:
    with untimed():
        report = engine.quantize(Recipe.make(model="mlp"), tmp_path / "run").data
    assert report["task"] == "regression" and report["data"]["name"] == "diabetes"
    metrics = report["metrics"]
    assert abs(metrics["ptq"]["MAE"]["value"] / metrics["fp32"]["MAE"]["value"] - 1) < 0.02
    assert all("fp32" not in layer["kernel"] for layer in report["layers"])


def test_a_model_of_another_task_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="mlp is for regression, and the task is classification"):
        engine.quantize(Recipe.make(model="mlp", task="classification", data={"name": "digits"}), tmp_path / "run")
    with pytest.raises(UsageError, match="digits is data for classification, and the task is regression"):
        engine.quantize(Recipe.make(model="mlp", data={"name": "digits"}), tmp_path / "run")


def test_the_answer_that_looks_at_nothing_is_the_median() -> None:
    targets = torch.tensor([[1.0], [2.0], [3.0], [10.0], [100.0]])
    errors = Errors()
    errors.update(torch.zeros_like(targets), targets)
    assert errors.chance() == pytest.approx(mean_absolute_error(targets, torch.full_like(targets, 3.0)))


@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_a_network_is_trained_on_targets_and_features_of_any_scale(tmp_path: Path, scale: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    draw = torch.Generator().manual_seed(0)
    features = torch.randn(300, 3, generator=draw) * torch.tensor([1.0, 1000.0, 0.01]) + torch.tensor([0.0, 5000.0, 1.0])
    wanted = scale * (40 + features[:, 0] - 2 * (features[:, 1] - 5000) / 1000 + 50 * (features[:, 2] - 1))
    rows = [",".join(f"{x:.9g}" for x in (*row, y)) for row, y in zip(features.tolist(), wanted.tolist(), strict=True)]
    table = tmp_path / "sales.csv"
    table.write_text("a,b,c,target\n" + "\n".join(rows))
    weights = quietly(pipeline.train("mlp", str(table), epochs=30), StopToken())
    with untimed():
        report = engine.quantize(
            Recipe.make(model="mlp", weights=str(weights), data={"name": str(table)}, preset="w8a8"), tmp_path / "run"
        ).data
    metrics = report["metrics"]
    # A tenth of what an answer that looks at nothing is wrong by.
    spread = float((wanted - wanted.median()).abs().mean())
    assert metrics["fp32"]["MAE"]["value"] < 0.1 * spread and metrics["fp32"]["R²"]["value"] > 0.98
    assert abs(metrics["ptq"]["MAE"]["value"] - metrics["fp32"]["MAE"]["value"]) < 0.01 * float(wanted.max() - wanted.min())


def test_what_a_training_puts_around_a_head_goes_into_its_weights() -> None:
    draw = torch.Generator().manual_seed(0)
    targets = torch.randn(50, 2, generator=draw) * torch.tensor([3.0, 4000.0]) + torch.tensor([-7.0, 90000.0])
    split = MemoryItems(Items(torch.randn(50, 4, generator=draw), targets))
    task = Regression(ItemData("made", split, split, split, 2))
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    x = torch.randn(6, 4, generator=draw)
    bare = model(x)
    end = task.begin_training(model)
    inside = model(x)
    assert torch.allclose(inside, bare * targets.std(0, correction=0) + targets.mean(0), rtol=1e-5)
    end()
    assert torch.allclose(model(x), inside, rtol=1e-5) and not model[2]._forward_hooks


def test_each_item_has_its_numbers_in_words() -> None:
    targets = torch.tensor([[1.0], [2.5]])
    split = MemoryItems(Items(torch.zeros(2, 4), targets))
    answers = Regression(ItemData("made", split, split, split, 1)).item_answers(targets + 0.5, Batch((), targets=targets, count=2))
    assert [(a.words, a.label, a.score) for a in answers] == [("1.5", "1", -0.5), ("3", "2.5", -0.5)]


def test_a_number_of_an_image_is_predicted_by_a_model_of_the_list(tmp_path: Path) -> None:
    with untimed():
        report = engine.quantize(Recipe.make(model="tinycnn", task="regression"), tmp_path / "run").data
    assert report["data"]["name"] == "digit-ink"
    metrics = report["metrics"]
    # The range of the targets is about 200.
    assert metrics["fp32"]["MAE"]["value"] < 2 and abs(metrics["ptq"]["MAE"]["value"] - metrics["fp32"]["MAE"]["value"]) < 2
    assert all("fp32" not in layer["kernel"] for layer in report["layers"])
