"""Labels of texts and of pairs: the metrics, what a run makes of a folder of one's own, and the ONNX file of it."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import numpy as np
import pytest
import text_folders as folders
import torch
import transformers
from scipy.special import softmax
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

import engine
from engine.errors import EngineError
from engine.models.registry import WEIGHTS
from engine.recipe.recipe import Recipe
from engine.tasks.registry import task_of
from engine.tasks.text_classification import LabelCounts, _counts, _f1, _matthews, label_metrics, label_places


@pytest.mark.parametrize("labels", [2, 7])
def test_metrics_are_those_of_scikit_learn(labels: int) -> None:
    torch.manual_seed(labels)
    logits, targets = torch.randn(90, labels), torch.randint(labels, (90,))
    logits[torch.arange(60), targets[:60]] += 3
    counted = LabelCounts(labels)
    for begin in range(0, 90, 32):
        counted.update(logits[begin : begin + 32], targets[begin : begin + 32])
    found, answers = counted.compute(), logits.argmax(1)
    assert found["accuracy"].value == pytest.approx(accuracy_score(targets, answers))
    assert found["F1"].value == pytest.approx(f1_score(targets, answers, average="macro"))
    assert found["Matthews"].value == pytest.approx(matthews_corrcoef(targets, answers), abs=1e-6)
    for metric in found.values():
        assert metric.low is not None and metric.high is not None and metric.low < metric.value < metric.high
    # What the bootstrap computes of sums is the same metric.
    sums = _counts(answers, targets, labels, None).double().sum(0, keepdim=True)
    assert float(_f1(sums, labels)) == pytest.approx(found["F1"].value, abs=1e-6)
    assert float(_matthews(sums, labels)) == pytest.approx(found["Matthews"].value, abs=1e-6)


def test_a_label_that_is_never_answered_counts_as_scikit_learn_counts_it() -> None:
    answers, targets = torch.tensor([0, 0, 1, 1, 0]), torch.tensor([0, 2, 1, 0, 2])
    found = label_metrics(answers, targets, 5, None)
    assert found["F1"].value == pytest.approx(f1_score(targets, answers, average="macro"))


def test_labels_are_found_by_name_by_case_and_by_number() -> None:
    names = ("negative", "positive")
    assert label_places(["positive", "negative"], names, "m", "d") == {"positive": 1, "negative": 0}
    assert label_places(["POSITIVE"], names, "m", "d") == {"POSITIVE": 1}
    assert label_places(["0", "1"], names, "m", "d") == {"0": 0, "1": 1}
    with pytest.raises(EngineError, match="1 of the labels in d are not m's .'neutral'.: it has 'negative', 'positive', or 0 to 1"):
        label_places(["neutral", "positive"], names, "m", "d")


def _reviews(folder: Path, file: Path, count: int = 120) -> Path:
    rows = folders.texts(2 * count)
    with file.open("w", newline="", encoding="utf-8") as out:
        csv.writer(out).writerows([("text", "label"), *((rows[i], label) for i, label in folders.answered(folder, rows))])
    return file


def test_a_folder_of_ones_own_runs_on_integers_at_every_length_and_its_onnx_file_says_the_same(tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    folder = folders.bert(tmp_path / "model")
    data = _reviews(folder, tmp_path / "reviews.csv")
    assert task_of(str(folder)).name == "text-classification"
    recipe = Recipe.make(model=str(folder), data={"name": str(data)}, preset="w8a8", export=["onnx"], qat={"mode": "never"})
    report = engine.quantize(recipe, tmp_path / "run").data
    assert report["metrics"]["fp32"]["accuracy"]["value"] == 1.0
    # Random weights: what they answer turns with the least noise.
    assert report["metrics"]["ptq"]["accuracy"]["value"] >= 0.7
    kernels = {layer["name"]: layer["kernel"] for layer in report["layers"]}
    linear = [path for path in kernels if path.endswith(("query", "key", "value", "dense", "classifier"))]
    assert len(linear) == 14 and all("fp32" not in kernels[path] for path in linear)

    # Padding changes nothing, and lengths that no calibration text had are served.
    model = engine.load_quantized(tmp_path / "run")
    words = folders.tokenizer()
    some = [*folders.texts(5, seed=9), *folders.texts(2, seed=8, least=30, most=40)]
    together = words(some, padding=True, return_tensors="pt")
    mixed = model(input_ids=together["input_ids"], attention_mask=together["attention_mask"])
    for i, text in enumerate(some):
        alone = words(text, return_tensors="pt")
        assert torch.allclose(model(input_ids=alone["input_ids"], attention_mask=alone["attention_mask"])[0], mixed[i], atol=1e-4)

    # The metric from the file, by code that knows nothing of the engine.
    session = onnxruntime.InferenceSession(tmp_path / "run" / "model.onnx", providers=["CPUExecutionProvider"])
    assert [given.shape for given in session.get_inputs()] == [["batch", "length"]] * 2
    tested = list(csv.DictReader(data.open(encoding="utf-8")))
    test = report["data"]["test"]
    own = transformers.AutoConfig.from_pretrained(folder).label2id
    right = []
    for row in tested:
        given = words(row["text"], return_tensors="np")
        (logits,) = session.run(None, {name: given[name].astype(np.int64) for name in ("input_ids", "attention_mask")})
        right.append(int(softmax(logits[0]).argmax()) == own[row["label"]])
    onnx = next(entry for entry in report["exports"] if entry["format"] == "onnx")
    assert onnx["verified"] and onnx["value"] == pytest.approx(report["metrics"]["ptq"]["accuracy"]["value"], abs=1.01 / test)
    assert np.mean(right) == pytest.approx(report["metrics"]["ptq"]["accuracy"]["value"], abs=0.15)


def test_the_small_bert_that_ships_loses_less_than_a_point_on_integers(tmp_path: Path) -> None:
    recipe = Recipe.make(
        model="bert-mini", preset="w8a8", data={"name": "python-modules", "limit": 300, "calibration": 64}, qat={"mode": "never"}
    )
    report = engine.quantize(recipe, tmp_path / "run").data
    accuracy = {name: found["accuracy"]["value"] for name, found in report["metrics"].items()}
    assert accuracy["fp32"] > 0.7 and accuracy["fp32"] - accuracy["ptq"] <= 0.01
    assert sum(layer["kind"] == "Linear" and "fp32" not in layer["kernel"] for layer in report["layers"]) == 14


def test_pairs_are_told_apart_by_their_token_types(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(WEIGHTS / "bert-mini", folder)
    first, second = folders.texts(120, seed=1), folders.texts(120, seed=2)
    answers = folders.answered(folder, first, second)
    rows = [{"premise": first[i], "hypothesis": second[i], "label": label} for i, label in answers]
    data = folders.jsonl(tmp_path / "pairs.jsonl", rows)
    recipe = Recipe.make(model=str(folder), task="pair-classification", data={"name": str(data)}, preset="w8a8", qat={"mode": "never"})
    report = engine.quantize(recipe, tmp_path / "run").data
    assert report["metrics"]["fp32"]["accuracy"]["value"] == 1.0
    assert report["ptq"]["error"]["sqnr_db"] > 20


def test_a_model_without_a_head_and_a_label_that_is_not_its_own_are_told_in_one_line(tmp_path: Path) -> None:
    bare, data = (
        folders.bert(tmp_path / "bare", "BertModel"),
        folders.jsonl(
            tmp_path / "rows.jsonl", [{"text": text, "label": label} for text, label in zip(folders.texts(8), "ab" * 4, strict=True)]
        ),
    )
    with pytest.raises(EngineError, match="without the head of text-classification"):
        engine.quantize(Recipe.make(model=str(bare), task="text-classification", data={"name": str(data)}), tmp_path / "run")
    folder = folders.bert(tmp_path / "model")
    with pytest.raises(EngineError, match="2 of the labels in .*rows.jsonl are not .*'a', 'b'"):
        engine.quantize(Recipe.make(model=str(folder), data={"name": str(data)}), tmp_path / "run")
