"""Whole runs of a language model that is read block by block: as the run in memory, stopped, killed, refused."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import driving
import pytest
import tiny_language
import torch

from engine import Recipe, load_quantized
from engine.errors import Cancelled, EngineError, UsageError
from engine.events.cancellation import StopToken
from engine.events.event import Needs, Notice, Planned
from engine.lowering.modules import streamed
from engine.lowering.modules.progress import MatrixQuantized
from engine.lowering.modules.walked_content import WalkedContent
from engine.runs import pipeline
from engine.tasks import causal_lm_streamed


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model in shards, and a text beside it."""
    folder = tmp_path_factory.mktemp("streamed")
    model = tiny_language.gpt2(n_layer=4).to(torch.bfloat16)
    model.save_pretrained(folder / "tiny", max_shard_size="10KB")
    tiny_language.tokenizer().save_pretrained(folder / "tiny")
    (folder / "text.txt").write_text(tiny_language.sentences(400))
    return folder


def recipe(place: Path, **changes: Any) -> Recipe:
    data = {"name": str(place / "text.txt"), "calibration": 8, "limit": 320, "stride": 16}
    return Recipe.make(**{"model": str(place / "tiny"), "data": data, "qat": {"mode": "never"}, "stream": True, **changes})


@pytest.mark.parametrize("preset", ["default", "w4"])
def test_a_streamed_run_reports_what_a_run_in_memory_does(preset: str, place: Path, tmp_path: Path) -> None:
    by_block = driving.drive(recipe(place, preset=preset), tmp_path / "streamed").data
    whole = driving.drive(recipe(place, preset=preset, stream=False), tmp_path / "whole").data
    assert by_block["lowering"] == "streamed" and whole["lowering"] == "modules"
    for key in ("value", "interval", "error", "integer_layers", "stored_layers", "kernel", "validation", "perplexity"):
        assert by_block["ptq"][key] == whole["ptq"][key], key
    assert by_block["metrics"] == whole["metrics"] and by_block["data"] == whole["data"]
    unlike = ("harm", "time_share")
    for first, second in zip(by_block["layers"], whole["layers"], strict=True):
        assert {k: v for k, v in first.items() if k not in unlike} == {k: v for k, v in second.items() if k not in unlike}
    (export,) = by_block["exports"]
    assert export["verified"] and export["parity"]["max_abs"] == 0 and export["parity"]["compared"] > 0
    assert "latency_ms" not in by_block["ptq"] and by_block["ptq"]["speedup"] == {} and by_block["workloads"] == []
    assert "its speed was not measured" in by_block["verdict"]["text"]
    assert not (tmp_path / "streamed" / "checkpoints" / "blocks").exists()
    assert (tmp_path / "streamed" / "report.md").read_text()
    ids = torch.arange(20)[None]
    first, second = (load_quantized(tmp_path / name).on_kernels() for name in ("streamed", "whole"))
    with torch.inference_mode():
        assert torch.equal(first(input_ids=ids).logits, second(input_ids=ids).logits)


def test_a_model_in_several_files_is_measured_exported_and_read_back(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streamed, "WalkedContent", partial(WalkedContent, largest=12_000))
    outcome = driving.drive(recipe(place), tmp_path / "run")
    (export,) = outcome.data["exports"]
    names = sorted(path.name for path in (tmp_path / "run").glob("model*"))
    assert names[-1] == "model.safetensors.index.json" == export["path"] and len(names) > 2
    assert export["size_bytes"] == sum((tmp_path / "run" / name).stat().st_size for name in names)
    assert export["verified"] and export["parity"]["max_abs"] == 0
    assert load_quantized(tmp_path / "run")(torch.arange(20)).shape == (1, 20, tiny_language.ROWS)


def test_a_model_that_does_not_fit_is_streamed_and_said_so(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(causal_lm_streamed, "HELD", 10**9)
    outcome = driving.drive(recipe(place, stream=None), tmp_path / "run")
    assert outcome.data["lowering"] == "streamed"
    assert any("are read block by block, with --no-stream they are not" in note.text for note in outcome.of(Notice))
    assert driving.drive(recipe(place, stream=False), tmp_path / "whole").data["lowering"] == "modules"


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "training": ({"qat": {"mode": "always"}}, "QAT needs the whole model in memory"),
    "a search": ({"targets": ["drop:0.1"]}, "a search for targets needs"),
    "operations": ({"graph": "export"}, "graph: export needs"),
    "grids from calibration": ({"preset": "w8a8-static"}, "activations on a grid from calibration"),
    "an export of the whole graph": ({"export": ["gguf"]}, "not known for language models that are read block by block"),
    "matrices that a format has not": ({"export": ["compressed-tensors"]}, "Conv1D"),
}  # fmt: skip


@pytest.mark.parametrize("what", sorted(REFUSED))
def test_what_needs_the_whole_model_is_refused_before_anything_starts(what: str, place: Path, tmp_path: Path) -> None:
    changes, words = REFUSED[what]
    outcome = driving.drive(recipe(place, **changes), tmp_path / "run")
    assert isinstance(outcome.error, UsageError) and words in str(outcome.error) and "\n" not in str(outcome.error)
    assert not outcome.of(MatrixQuantized) and not (tmp_path / "run").exists()


def test_what_is_asked_of_other_models_is_refused(tmp_path: Path) -> None:
    outcome = driving.drive(Recipe.make(model="simplecnn", stream=True), tmp_path / "run")
    assert isinstance(outcome.error, UsageError) and "stream is for language models" in str(outcome.error)


def test_a_disk_that_is_too_small_is_told_before_a_block_is_read(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.lowering.modules.streamed.free_in", lambda place: 1000)
    outcome = driving.drive(recipe(place), tmp_path / "run")
    assert isinstance(outcome.error, EngineError) and "of disk and 0.0 GB are free" in str(outcome.error)
    assert not outcome.of(MatrixQuantized) and not (tmp_path / "run").exists()


def test_needs_are_told_with_the_plan_and_hold(place: Path, tmp_path: Path) -> None:
    outcome = driving.drive(recipe(place, preset="w4"), tmp_path / "run")
    (needs,) = outcome.of(Needs)
    kinds = [type(event) for event in outcome.events]
    assert kinds.index(Planned) < kinds.index(Needs) and not needs.short and needs.seconds > 0
    written = (tmp_path / "run" / "model.safetensors").stat().st_size
    assert written <= needs.disk_bytes + 30_000 and needs.memory_bytes > 10**9
    assert any("without the rounding by gptq+" in note.text for note in outcome.of(Notice))


def test_a_dry_run_plans_and_keeps_nothing(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for stream in (True, False):
        events = list(pipeline.dry_run(recipe(place, stream=stream), None, StopToken()))
        assert any(isinstance(event, Planned) for event in events)
        assert any(isinstance(event, Needs) and not event.short for event in events)
        assert not any(isinstance(event, MatrixQuantized) for event in events)
    with pytest.raises(UsageError, match="Conv1D"):
        list(pipeline.dry_run(recipe(place, export=["compressed-tensors"]), None, StopToken()))
    assert not list(tmp_path.iterdir())


def test_a_stopped_run_goes_on_with_the_block_where_it_was(place: Path, tmp_path: Path) -> None:
    expected = driving.drive(recipe(place, preset="w4"), tmp_path / "whole").data

    def look(event: Any, stop: StopToken) -> None:
        if isinstance(event, MatrixQuantized) and ".h.2." in event.name:
            stop.set()

    stopped = driving.drive(recipe(place, preset="w4"), tmp_path / "run", on_event=look)
    assert isinstance(stopped.error, Cancelled)
    assert json.loads((tmp_path / "run" / "state.json").read_text())["state"] == "cancelled"
    kept = sorted(path.name for path in (tmp_path / "run" / "checkpoints" / "blocks").glob("block-*"))
    assert kept == ["block-0000.safetensors", "block-0001.safetensors"]
    resumed = driving.resumed(tmp_path / "run")
    assert any("matrices were rounded before the run was stopped" in note.text for note in resumed.of(Notice))
    assert resumed.data["metrics"] == expected["metrics"]


@pytest.mark.slow  # Two processes that import transformers.
def test_a_run_that_gets_sigterm_saves_its_state_and_one_that_is_killed_loses_a_block_at_most(place: Path, tmp_path: Path) -> None:
    for number, kill in enumerate((signal.SIGTERM, signal.SIGKILL)):
        out = tmp_path / str(number)
        (file := tmp_path / "recipe.yaml").write_text(recipe(place, preset="w4").to_yaml())
        command = [sys.executable, "-m", "qtui", "run", "--recipe", str(file), "--out", str(out), "--yes"]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env={**os.environ, "OMP_NUM_THREADS": "1"})
        blocks = out / "checkpoints" / "blocks"
        while process.poll() is None and not list(blocks.glob("block-0001*")):
            time.sleep(0.01)
        process.send_signal(kill)
        process.communicate()
        done = len(list(blocks.glob("block-*.safetensors")))
        if process.returncode == 0:
            continue
        assert done >= 2
        resumed = driving.resumed(out)
        assert sum(event.kept for event in resumed.of(MatrixQuantized)) >= 4 * done
        assert resumed.data["exports"][0]["verified"]
