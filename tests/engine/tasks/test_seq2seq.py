"""Texts made of texts: the loss of a token, and what greedy decoding makes exactly."""

from __future__ import annotations

from pathlib import Path

import pytest
import text_folders as folders
import torch
import torch.nn.functional as F
import transformers

import engine
from engine.recipe.recipe import Recipe
from engine.tasks.registry import task_of
from engine.tasks.seq2seq import NOTHING, TokenLosses


def test_the_loss_of_a_token_is_torchs_own() -> None:
    torch.manual_seed(0)
    logits, targets = torch.randn(10, 7, 5), torch.randint(5, (10, 7))
    targets[torch.arange(10), -1] = NOTHING
    counted = TokenLosses()
    counted.update(logits[:4], targets[:4])
    counted.update(logits[4:], targets[4:])
    wanted = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=NOTHING)
    assert counted.compute()["loss"].value == pytest.approx(float(wanted), abs=1e-5)


def _t5(folder: Path) -> Path:
    torch.manual_seed(0)
    config = transformers.T5Config(
        vocab_size=len(folders.WORDS) + 4, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, pad_token_id=0, eos_token_id=3,
        decoder_start_token_id=0,
    )  # fmt: skip
    return folders.write(folder, transformers.T5ForConditionalGeneration(config))


def test_a_t5_of_ones_own_runs_on_integers_and_matches_what_generate_makes(tmp_path: Path) -> None:
    folder = _t5(tmp_path / "model")
    assert task_of(str(folder)).name == "seq2seq"
    model, words = transformers.AutoModelForSeq2SeqLM.from_pretrained(folder).eval(), folders.tokenizer()
    rows = []
    for i, text in enumerate(folders.texts(60)):
        given = words(text, return_tensors="pt", return_token_type_ids=False)
        made = words.decode(model.generate(**given, max_new_tokens=9, do_sample=False, num_beams=1)[0], skip_special_tokens=True)
        # Every second target is what greedy decoding makes, as far as it is one that ends by itself.
        rows.append({"source": text, "target": made if i % 2 and made.strip() else text})
    data = folders.jsonl(tmp_path / "pairs.jsonl", rows)
    recipe = Recipe.make(model=str(folder), data={"name": str(data)}, preset="w8a8", qat={"mode": "never"})
    report = engine.quantize(recipe, tmp_path / "run").data
    metrics = report["metrics"]
    assert abs(metrics["ptq"]["loss"]["value"] / metrics["fp32"]["loss"]["value"] - 1) < 0.05
    linear = [layer for layer in report["layers"] if layer["name"].rpartition(".")[2] in ("q", "k", "v", "o", "wi", "wo")]
    assert len(linear) == 32 and all("fp32" not in layer["kernel"] for layer in linear)
