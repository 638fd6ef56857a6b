"""Files that are damaged, foreign or in the way: one clear line, exit code 1, and nothing overwritten."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import driving
import nets
import pytest
import torch
from finished_runs import again, contents
from safetensors.torch import save_file

from engine import load_quantized
from engine.errors import EngineError
from engine.events.cancellation import StopToken
from engine.export import parity
from engine.export.registry import FORMATS
from engine.report.report import Report
from qtui.__main__ import main
from qtui.engine_thread import TorchEngine

Change = Callable[[Path], None]


def _flip(name: str, at: int = -3) -> Change:
    def change(directory: Path) -> None:
        content = bytearray((directory / name).read_bytes())
        content[at] ^= 1
        (directory / name).write_bytes(bytes(content))

    return change


def _cut(name: str, by: int = 10) -> Change:
    return lambda directory: (directory / name).write_bytes((directory / name).read_bytes()[:-by]) and None


def _put(name: str, content: bytes) -> Change:
    return lambda directory: (directory / name).write_bytes(content) and None


def _gone(name: str) -> Change:
    return lambda directory: (directory / name).unlink()


def _foreign(directory: Path) -> None:
    save_file({"weight": torch.zeros(3)}, directory / "model.safetensors")


def _forget_the_hash(then: Change) -> Change:
    """As reports are that another program wrote: the file's own content has to tell."""

    def change(directory: Path) -> None:
        report = json.loads((directory / "report.json").read_text())
        report["exports"] = [e for e in report["exports"] if e["format"] != "safetensors"]
        (directory / "report.json").write_text(json.dumps(report))
        then(directory)

    return change


def _nothing(directory: Path) -> None: ...


# What is wrong with the folder, what is asked for, and what the line says.
EXPORTS: dict[str, tuple[Change, str, tuple[str, ...]]] = {
    "a byte of the model changed": (_flip("model.safetensors"), "pt2", ("was changed since the run", "put the file back")),
    "the model is cut off": (_cut("model.safetensors"), "pt2", ("was changed since the run", "qtui run --recipe")),
    "the model is of another program": (_foreign, "pt2", ("was changed since the run",)),
    "the model is gone": (_gone("model.safetensors"), "pt2", ("model.safetensors does not exist", "qtui run --recipe")),
    "an unknown model is cut off": (_forget_the_hash(_cut("model.safetensors")), "pt2", ("not a whole safetensors file", "copy it again")),
    "an unknown model is foreign": (_forget_the_hash(_foreign), "pt2", ("was not written by this program", "finished run")),
    "an unknown model is an ONNX file": (
        _forget_the_hash(_put("model.safetensors", b"\x08\x0a" * 50)), "pt2", ("not a whole safetensors file",),
    ),
    "the report is no JSON": (_put("report.json", b"{"), "pt2", ("report.json is not JSON", "run it again")),
    "the report is of something else": (_put("report.json", b"[1]"), "pt2", ("not a report of schema 1",)),
    "the run did not finish": (_gone("report.json"), "pt2", ("holds no report.json", "has not finished")),
    "an export is there": (_put("model.onnx", b"mine"), "onnx", ("model.onnx exists already", "leave onnx out", "--force")),
    "an export is there beside a new one": (_put("model.pt2", b"mine"), "onnx,pt2", ("model.pt2 exists already", "leave pt2 out")),
    "a part of an export is there": (_put("model.bin", b"mine"), "openvino", ("model.bin exists already",)),
    "an export is a folder": (lambda directory: (directory / "model.pt2").mkdir(), "pt2", ("model.pt2 exists already",)),
}  # fmt: skip


def refused(directory: Path, formats: str, capsys: pytest.CaptureFixture[str]) -> str:
    """What ``qtui export`` says on stderr; it fails and changes nothing."""
    before = contents(directory)
    with driving.untimed():
        assert main(["export", str(directory), "--to", formats]) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1 and len(said) < 500
    assert contents(directory) == before and not [path for path in directory.iterdir() if path.name.startswith(".")]
    return said


@pytest.mark.parametrize("case", EXPORTS)
def test_an_export_that_cannot_be(case: str, finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change, formats, words = EXPORTS[case]
    change(finished)
    said = refused(finished, formats, capsys)
    assert all(word in said for word in words), said


def test_a_folder_that_cannot_be_written(finished: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def deny(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr("engine.export.finished.tempfile.TemporaryFile", deny)
    said = refused(finished, "pt2", capsys)
    assert f"{finished} cannot be written (Read-only file system): copy the run" in said


def test_force_and_the_app_write_what_is_there_again(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with driving.untimed():
        (finished / "model.pt2").write_bytes(b"mine")
        stop = StopToken()
        outcome = driving.consume(TorchEngine().export(finished, ("pt2",), stop), stop)
        assert outcome.data["exports"][1]["verified"] and (finished / "model.pt2").read_bytes() != b"mine"
        assert main(["export", str(finished), "--to", "pt2", "--force"]) == 0
        assert main(["export", str(finished), "--to", "pt2"]) == 1
    assert "--force" in capsys.readouterr().err


@pytest.mark.parametrize("place", ["nowhere", "a file"])
def test_a_run_that_is_none(place: str, tmp_path: Path, own_cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a file").write_bytes(b"\x08\x0a")
    assert main(["export", str(tmp_path / place), "--to", "pt2"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_without_its_fp32_model_a_run_is_exported_all_the_same(finished: Path) -> None:
    recipe = (finished / "recipe.yaml").read_text()
    (finished / "recipe.yaml").write_text(recipe.replace("tiny.py", "gone.py"))
    outcome = again(finished, "pt2")
    assert any("fp32 is not timed again" in event.text for event in outcome.events if hasattr(event, "text"))
    assert outcome.data["exports"][1]["verified"] and [row["format"] for row in outcome.data["runtimes"]] == ["safetensors", "pt2"]
    assert ": timed in the run, the others together at another hour" in (finished / "report.md").read_text()


@pytest.fixture(scope="module")
def exported(finished_once: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("onnx")
    directory = Path(shutil.copytree(finished_once, tmp_path_factory.mktemp("exported") / "run"))
    assert again(directory, "onnx", "pt2").error is None
    return directory


# An exported file under a name, and what is said where weights, or a quantized model, are asked for.
NAMES = ("model.onnx", "model.pt2", "model.safetensors")
GIVEN_AS = ("w.safetensors", "w.pt", "w.pth", "w.onnx", "w.pt2", "w")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("given", GIVEN_AS)
def test_an_export_is_no_weights(name: str, given: str, exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = Path(shutil.copy(exported / name, tmp_path / given))
    out = tmp_path / "out"
    assert main(["run", "simplecnn", "--weights", str(file), "--out", str(out), "--yes"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1 and str(file) in said and len(said) < 500
    assert (
        any(word in said for word in ("not weights", "not a whole", "no PyTorch file", "holds more than weights", "state_dict"))
        and not out.exists()
    )


@pytest.mark.parametrize("name", ["model.onnx", "model.pt2"])
@pytest.mark.parametrize("given", ["model.safetensors", "as it is"])
def test_an_export_is_no_quantized_model(name: str, given: str, exported: Path, tmp_path: Path) -> None:
    file = tmp_path / (name if given == "as it is" else given)
    shutil.copy(exported / name, file)
    with pytest.raises(EngineError, match=r"^[^\n]{20,400}$") as caught:
        load_quantized(file)
    assert str(file) in str(caught.value) and ("finished run" in str(caught.value) or "copy it again" in str(caught.value))


@pytest.mark.parametrize("name", ["model.onnx", "model.pt2"])
def test_an_export_that_changed_is_not_read_back(name: str, exported: Path, tmp_path: Path) -> None:
    directory = Path(shutil.copytree(exported, tmp_path / "run"))
    _flip(name, 2000)(directory)
    changed = (directory / name).read_bytes()
    data = again(directory, "safetensors").data
    found = {entry["format"]: entry for entry in data["exports"]}
    mine = found[name.removeprefix("model.")]
    assert not mine["verified"] and "was changed since it was exported" in mine["reason"] and mine["latency_ms"] == {}
    assert sum(entry["verified"] for entry in found.values()) == 2 and (directory / name).read_bytes() == changed
    assert mine["format"] not in [row["format"] for row in data["runtimes"]]
    assert "was changed since it was exported" in Report.load(directory).to_markdown()


def test_stopping_enters_what_is_finished(finished: Path) -> None:
    pytest.importorskip("onnx")

    def on_event(event: object, stop: object) -> None:
        if getattr(event, "text", "").startswith("onnx: writing"):
            stop.set()  # type: ignore[attr-defined]

    outcome = again(finished, "pt2", "onnx", on_event=on_event)
    assert type(outcome.error).__name__ == "Cancelled"
    known = {entry["format"]: entry for entry in Report.load(finished).data["exports"]}
    assert known["pt2"]["verified"] and known["pt2"]["latency_ms"] == {} and known["safetensors"]["latency_ms"]
    assert known["onnx"]["reason"] == "it was not read back: the export was stopped before" and not known["onnx"]["verified"]
    assert (finished / "model.onnx").is_file() and not [path for path in finished.iterdir() if path.name.startswith(".")]
    assert again(finished, "onnx", overwrite=True).data["exports"][2]["verified"]


@pytest.mark.parametrize(("trial", "code"), [("import os; os.kill(os.getpid(), 11)", -11), ("import os; os._exit(7)", 7)])
def test_a_runtime_that_crashes_on_a_file_leaves_it_unverified(
    finished: Path, monkeypatch: pytest.MonkeyPatch, trial: str, code: int
) -> None:
    monkeypatch.setattr("engine.export.pt2.TRIAL", trial, raising=False)
    monkeypatch.setattr(driving, "UNTRIED", False)
    outcome = again(finished, "pt2")
    found = outcome.data["exports"][1]
    assert outcome.error is None and not found["verified"] and (finished / "model.pt2").is_file()
    assert f"torch.export crashes on {finished / 'model.pt2'} (exit code {code})" in found["reason"]


def test_what_a_terminal_sends_does_not_reach_a_trial(tmp_path: Path) -> None:
    # A Ctrl-C goes to all of a terminal's group: in another one the trial goes on, and no crash is told.
    trial = f"import os, sys; sys.exit(7 if os.getpgrp() == {os.getpgrp()} else 0)"
    parity.tried(FORMATS["onnx"], tmp_path / "model.onnx", trial)


@pytest.mark.parametrize("name", ["onnx", "openvino"])
def test_a_file_is_tried_in_a_process_of_its_own(name: str, tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    pytest.importorskip({"onnx": "onnxruntime", "openvino": "openvino"}[name])
    entry, given = FORMATS[name], nets.quantized(nets.Sequence1d)
    module = entry.module("graph")
    path = tmp_path / entry.files[0]
    module.write(given, path)
    done = subprocess.run([sys.executable, "-c", module.TRIAL, str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    path.write_bytes(b"no model")
    parity.tried(entry, path, module.TRIAL)
