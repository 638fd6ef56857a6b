"""Tags of words: special tokens and the rest of a word do not count."""

from __future__ import annotations

from pathlib import Path

import pytest
import text_folders as folders
import torch
import transformers
from sklearn.metrics import accuracy_score, f1_score

import engine
from engine.recipe.recipe import Recipe
from engine.tasks.registry import task_of
from engine.tasks.token_classification import NOTHING, TagCounts

TAGS = ("O", "B", "I")


def test_metrics_over_words_are_those_of_scikit_learn() -> None:
    torch.manual_seed(0)
    logits, targets = torch.randn(12, 9, 3), torch.randint(3, (12, 9))
    targets[torch.rand(12, 9) < 0.3] = NOTHING
    counted = TagCounts(3)
    counted.update(logits[:5], targets[:5])
    counted.update(logits[5:], targets[5:])
    kept = targets != NOTHING
    wanted, answers = targets[kept], logits.argmax(-1)[kept]
    found = counted.compute()
    assert found["accuracy"].value == pytest.approx(accuracy_score(wanted, answers))
    assert found["F1"].value == pytest.approx(f1_score(wanted, answers, average="macro"))
    assert found["accuracy"].low is not None and found["accuracy"].low < found["accuracy"].value
    assert counted.details() == {"words": int(kept.sum())}


def test_a_folder_of_ones_own_tags_words_on_integers(tmp_path: Path) -> None:
    folder = folders.bert(tmp_path / "model", "BertForTokenClassification", TAGS)
    model = transformers.AutoModelForTokenClassification.from_pretrained(folder).eval()
    words, rows = folders.tokenizer(), []
    for text in folders.texts(80):
        with torch.no_grad():
            answers = model(**words(text, return_tensors="pt")).logits[0, 1:-1].argmax(-1)
        rows.append({"tokens": text.split(), "tags": [TAGS[i] for i in answers.tolist()]})
    data = folders.jsonl(tmp_path / "tags.jsonl", rows)
    assert task_of(str(folder)).name == "token-classification"
    recipe = Recipe.make(model=str(folder), data={"name": str(data)}, preset="w8a8", qat={"mode": "never"})
    report = engine.quantize(recipe, tmp_path / "run").data
    assert report["metrics"]["fp32"]["accuracy"]["value"] == 1.0
    assert report["metrics"]["ptq"]["accuracy"]["value"] >= 0.95
    assert all("fp32" not in layer["kernel"] for layer in report["layers"] if layer["name"].endswith(("query", "dense", "classifier")))
