"""Numbers predicted of items: the metrics, and the way from a named model to a report."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from sklearn.metrics import mean_absolute_error, r2_score

import engine
from engine.errors import UsageError
from engine.recipe.recipe import Recipe
from engine.tasks.regression import Errors


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
