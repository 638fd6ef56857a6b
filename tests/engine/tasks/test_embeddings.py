"""Vectors of texts: near to fp32's, pooled as the model says, and ranked as people rank pairs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import text_folders as folders
import torch
import torch.nn.functional as F
import transformers
from scipy.stats import spearmanr

import engine
from engine.errors import EngineError
from engine.models.text_models import load_text_model, pooling_of
from engine.recipe.recipe import Recipe
from engine.tasks.embeddings import Embedding, Similarities


def test_spearman_is_that_of_scipy_and_the_cosine_that_of_torch() -> None:
    torch.manual_seed(0)
    vectors, fp32, scores = torch.randn(60, 8), torch.randn(60, 8), torch.rand(30).double().repeat_interleave(2)
    counted = Similarities(True)
    for begin in range(0, 60, 13):
        part = slice(begin, begin + 13)
        counted.update(vectors[part], {"vectors": fp32[part], "scores": scores[part]})
    found = counted.compute()
    alike = F.cosine_similarity(vectors[::2], vectors[1::2])
    assert found["Spearman"].value == pytest.approx(spearmanr(alike, scores[::2]).statistic, abs=1e-5)
    assert found["cosine"].value == pytest.approx(float(F.cosine_similarity(vectors, fp32).mean()), abs=1e-6)


@pytest.mark.parametrize("mode", ["mean", "cls"])
def test_sentences_are_pooled_as_the_folder_says(tmp_path: Path, mode: str) -> None:
    folder = folders.bert(tmp_path / "model", "BertModel")
    (folder / "1_Pooling").mkdir()
    key = {"mean": "pooling_mode_mean_tokens", "cls": "pooling_mode_cls_token"}[mode]
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 32, key: True}))
    module = Embedding(load_text_model(str(folder), "encoder", "embeddings").model, pooling_of(folder)).eval()
    plain, words = transformers.AutoModel.from_pretrained(folder).eval(), folders.tokenizer()
    some = folders.texts(4)
    together = words(some, padding=True, return_tensors="pt")
    with torch.no_grad():
        found = module(together["input_ids"], together["attention_mask"])
        for text, vector in zip(some, found, strict=True):
            last = plain(**words(text, return_tensors="pt")).last_hidden_state[0]
            assert torch.allclose(vector, last.mean(0) if mode == "mean" else last[0], atol=1e-5)
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_max_tokens": True}))
    with pytest.raises(EngineError, match="pools its tokens by pooling_mode_max_tokens"):
        pooling_of(folder)


def test_scored_pairs_are_ranked_by_what_was_quantized(tmp_path: Path) -> None:
    folder = folders.bert(tmp_path / "model", "BertModel")
    first, second = folders.texts(60, seed=1), folders.texts(60, seed=2)
    rows = [{"sentence1": a, "sentence2": b, "score": len(set(a.split()) & set(b.split()))} for a, b in zip(first, second, strict=True)]
    data = folders.jsonl(tmp_path / "pairs.jsonl", rows)
    recipe = Recipe.make(model=str(folder), task="embeddings", data={"name": str(data)}, preset="w8a8", qat={"mode": "never"})
    report = engine.quantize(recipe, tmp_path / "run").data
    metrics = report["metrics"]
    assert metrics["fp32"]["cosine"]["value"] == pytest.approx(1.0, abs=1e-5)
    assert 0.98 < metrics["ptq"]["cosine"]["value"] < 1.0
    assert abs(metrics["ptq"]["Spearman"]["value"] - metrics["fp32"]["Spearman"]["value"]) < 0.2
