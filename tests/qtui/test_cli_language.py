"""The commands that look back at the run of a language model, on a real one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import driving
import families
import pytest

from engine import Recipe
from engine.errors import Cancelled
from engine.events.cancellation import StopToken
from engine.events.event import Notice
from engine.runs import reexport as exporting
from qtui.__main__ import main


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of a small LLaMA on a text."""
    place = tmp_path_factory.mktemp("language")
    families.build("llama").save_pretrained(place / "tiny")
    (place / "ids.json").write_text(json.dumps([[(7 * i + j * j) % 96 for j in range(16)] for i in range(40)]))
    data = {"name": str(place / "ids.json"), "calibration": 4}
    outcome = driving.drive(Recipe.make(model=str(place / "tiny"), data=data, preset="w4a8", qat={"mode": "never"}), place / "run")
    assert outcome.error is None
    return place / "run"


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def edit(run: Path, part: str, **changes: object) -> None:
    report = json.loads((run / "report.json").read_text())
    report[part].update(changes)
    (run / "report.json").write_text(json.dumps(report))


def test_a_format_that_language_models_alone_have_is_exported(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with driving.one_thread():
        assert main(["export", str(run), "--to", "compressed-tensors"]) == 0
    assert (run / "compressed-tensors" / "config.json").is_file() and "exported: compressed-tensors" in capsys.readouterr().out
    assert main(["export", str(run), "--to", "pt2"]) == 2
    assert main(["export", str(run), "--to", "exl2"]) == 2
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith("error: export format 'pt2' is not known for language models") and "'exl2' is not known" in second


def test_an_export_that_is_stopped_enters_what_is_finished(run: Path) -> None:
    def stop_it(event: object, stop: StopToken) -> None:
        if isinstance(event, Notice) and event.text.startswith("compressed-tensors"):
            stop.set()

    stop = StopToken()
    with driving.one_thread():
        steps = exporting.export(run, ("compressed-tensors", "onnx"), stop, False)
        assert isinstance(driving.consume(steps, stop, on_event=stop_it).error, Cancelled)
    assert [entry["format"] for entry in json.loads((run / "report.json").read_text())["exports"]] == ["safetensors", "compressed-tensors"]


def test_the_runs_own_file_is_not_written_again(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (run / "report.json").read_bytes()
    assert main(["export", str(run), "--to", "safetensors"]) == 0
    assert "model.safetensors is there as the run wrote it" in capsys.readouterr().out
    assert (run / "report.json").read_bytes() == before


def test_figures_that_are_not_finite_are_shown_as_none(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    edit(run, "ptq", value=None, interval=None)
    assert main(["show", str(run)]) == 0
    assert "| PTQ |  | " in capsys.readouterr().out


def test_a_report_without_its_figures_is_one_line(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    edit(run, "ptq", size_bytes="many")
    assert main(["show", str(run)]) == 1
    out, err = capsys.readouterr()
    assert (
        out == ""
        and err.startswith(f"error: {run / 'report.json'} is damaged (ptq.size_bytes is text, not a number)")
        and err.count("\n") == 1
    )


def test_words_that_would_steer_a_terminal_are_not_written_into_a_report(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = json.loads((run / "report.json").read_text())
    report["samples"] = [{"prompt": "a\x1b[2J", "fp32": "b\x9b", "quantized": "c"}]
    (run / "report.json").write_text(json.dumps(report))
    assert main(["show", str(run)]) == 0
    assert "| after | a�[2J |" in capsys.readouterr().out


@pytest.mark.parametrize("model", ["gpt2", "someone/else", "FOLDER"])
def test_other_language_models_are_not_trained(model: str, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = str(run.parent / "tiny") if model == "FOLDER" else model
    if model == "FOLDER":
        families.build("llama").save_pretrained(name)
    assert main(["train", name]) == 2
    assert capsys.readouterr().err.splitlines()[-1].endswith(f"qtui trains gpt2-mini alone: give {name} to qtui run")
