"""The training of gpt2-mini from its text to a folder that loads again, in a size that takes a second."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny_language

from engine.data.text.documents import Document, split_of
from engine.data.text.tokens import encode
from engine.errors import Cancelled, UsageError
from engine.events.cancellation import StopToken
from engine.events.event import EpochFinished, Event, StageFinished, StageStarted
from engine.models.transformers_load import load_language
from engine.runs import pipeline
from engine.tasks.perplexity import stream_perplexity
from engine.training import gpt2_mini as mini


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> tuple[Document, ...]:
    docs = tuple(Document(f"d{number}", tiny_language.sentences(8, number)) for number in range(30))
    for name, value in (("VOCABULARY", 300), ("CONTEXT", 32), ("SHAPE", {"n_embd": 16, "n_layer": 1, "n_head": 2})):
        monkeypatch.setattr(mini, name, value)
    monkeypatch.setattr(mini, "python_docs", lambda: docs)
    monkeypatch.setattr(mini, "SCHEDULE", replace(mini.SCHEDULE, epochs=2, short=1, context=32, tokens=128, lr=1e-2, mixed=False))
    return docs


def train(out: Path, on_event: Callable[[Event, StopToken], None] = lambda event, stop: None) -> list[Event]:
    stop, seen = StopToken(), []
    for event in pipeline.train("gpt2-mini", None, out=out, command="qtui train gpt2-mini", stop=stop, device="cpu"):
        seen.append(event)
        on_event(event, stop)
    return seen


def test_what_is_written_loads_and_measures_as_the_record_says(small: tuple[Document, ...], tmp_path: Path) -> None:
    seen = train(tmp_path / "mini")
    assert isinstance(seen[0], StageStarted) and isinstance(seen[-1], StageFinished)
    assert sorted(path.name for path in (tmp_path / "mini").iterdir()) == [
        "config.json", "model.safetensors", "record.json", "tokenizer.json", "tokenizer_config.json",
    ]  # fmt: skip
    found = load_language(str(tmp_path / "mini"))
    record = json.loads((tmp_path / "mini" / "record.json").read_text())
    test = encode(found.tokenizer, [doc for doc in small if split_of(doc.name) == "test"])
    for told, stride in zip(record["test"], (32, 16), strict=True):
        measured = tiny_language.finished(stream_perplexity(found.logits, test, 32, stride, stop=StopToken()))
        assert measured.value == pytest.approx(told["value"], rel=1e-4) and measured.tokens == told["tokens"]
    assert record["test_perplexity"] == pytest.approx(record["test"][0]["value"], abs=1e-3)
    assert (record["command"], record["seed"], record["schedule"]["epochs"]) == ("qtui train gpt2-mini", 0, 2)
    # As it ships: half precision, no dropout, one matrix for embedding and head.
    assert found.model.config.resid_pdrop == 0 and found.model.lm_head.weight is found.model.transformer.wte.weight


def test_it_is_the_same_each_time_stopped_or_not(small: tuple[Document, ...], tmp_path: Path) -> None:
    train(tmp_path / "a")
    with pytest.raises(Cancelled):
        train(tmp_path / "b", lambda event, stop: stop.set() if isinstance(event, EpochFinished) else None)
    assert (tmp_path / "b" / "checkpoint.pt").exists()
    train(tmp_path / "b")
    for name in ("model.safetensors", "tokenizer.json", "config.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_only_gpt2_mini_is_trained_and_only_on_its_text(tmp_path: Path) -> None:
    for model, data, said in (("gpt2", None, "comes trained"), ("gpt2-mini", "digits", "not on digits"), ("simplecnn", None, "needs data")):
        with pytest.raises(UsageError, match=said):
            next(pipeline.train(model, data, out=tmp_path / "x"))


def test_the_command_line_asks_for_no_data(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from qtui.__main__ import main

    asked: dict[str, Any] = {}

    def fake(model: str, data: str | None, **options: Any) -> Any:
        asked.update(options, model=model, data=data)
        yield EpochFinished(1, 2, 4.5, 61.238, 1e-3, True, "train", "perplexity")
        return tmp_path / "model.safetensors"

    monkeypatch.setattr(pipeline, "train", fake)
    assert main(["train", "gpt2-mini", "--epochs", "2"]) == 0
    assert (asked["model"], asked["data"], asked["epochs"]) == ("gpt2-mini", None, 2)
    assert asked["command"] == "uv run qtui train gpt2-mini --epochs 2"
    said = capsys.readouterr().out
    assert "61.24" in said and "%" not in said


def test_fewer_epochs_keep_the_part_of_short_ones() -> None:
    schedule = mini.with_epochs(mini.SCHEDULE, 8)
    assert (schedule.epochs, schedule.short) == (8, 8 * mini.SCHEDULE.short // mini.SCHEDULE.epochs)


def test_the_network_has_the_parameters_that_the_list_says() -> None:
    from engine.models.language_registry import ENTRIES

    assert sum(p.numel() for p in mini.build().parameters()) == ENTRIES["gpt2-mini"].params
    assert ENTRIES["gpt2-mini"].context == mini.CONTEXT


@pytest.mark.slow
def test_training_does_not_wait_for_torchs_compiler() -> None:
    code = "import sys, engine.training.language_fit; sys.exit('torch._dynamo' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
