"""What a run reports of its ONNX file is what the file gives: the metric is computed again from it by public packages alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, jaccard_score, mean_absolute_error

import engine
from engine.data import registry
from engine.recipe.recipe import DataPart, Recipe

Score = Callable[[Any, Any], float]
TASKS: dict[str, tuple[str, str, str, Score]] = {
    "unet": ("segmentation", "digit-scenes", "mIoU", lambda x, y: jaccard_score(y.ravel(), x.argmax(1).ravel(), average="macro")),
    "tinycnn": ("multilabel", "digit-attributes", "mAP", lambda x, y: average_precision_score(y, x, average="macro")),
    "tinycnn on numbers": ("regression", "digit-ink", "MAE", lambda x, y: mean_absolute_error(y, x)),
}


@pytest.mark.parametrize("case", TASKS)
def test_the_metric_of_an_exported_file_is_the_one_in_the_report(case: str, tmp_path: Path) -> None:
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    task, data, metric, score = TASKS[case]
    recipe = Recipe.make(model=case.split()[0], task=task, export=["onnx"], data={"name": data, "limit": 128}, preset="w8a8")
    report = engine.quantize(recipe, tmp_path / "run").data
    entry = next(entry for entry in report["exports"] if entry["format"] == "onnx")
    assert entry["verified"], entry["reason"]

    session = runtime.InferenceSession(tmp_path / "run" / "model.onnx", providers=["CPUExecutionProvider"])
    items = registry.items(DataPart(name=data), task).test.read(range(128))
    name = session.get_inputs()[0].name
    outputs = np.concatenate([session.run(None, {name: part.numpy()})[0] for part in torch.split(items.inputs, 32)])
    found = score(outputs, items.targets.numpy())
    assert entry["value"] == pytest.approx(found, rel=1e-4)
    fp32, native = (report["metrics"][form][metric]["value"] for form in ("fp32", "ptq"))
    bound = 0.01 if metric != "MAE" else 0.01 * float(items.targets.max() - items.targets.min())
    assert abs(native - fp32) < bound and abs(found - native) < bound
