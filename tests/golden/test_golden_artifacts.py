"""Runs that an earlier version left on the disk: they load, give what they gave, are shown and exported, and go on."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import golden_models as models
import pytest
import torch
from golden_runs import ARTIFACTS, child_environment, command, inside, processor_maker
from safetensors.torch import load_file

import engine

RUNS = ("network-int4-int8", "decoder-int4", "decoder-w8a8-static")
STOPPED = "network-stopped"
# Where the runs were made; what they name there lies beside them here.
MADE_IN = "/tmp/qtui-golden"
MADE_ON = ("AVX2", "AuthenticAMD")

each_run = pytest.mark.parametrize("name", RUNS)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of all that is kept, with the recipes' paths of where it is now, in a folder of its own."""
    shutil.copytree(ARTIFACTS, tmp_path, dirs_exist_ok=True)
    for recipe in tmp_path.glob("runs/*/recipe.yaml"):
        recipe.write_text(recipe.read_text(encoding="utf-8").replace(MADE_IN, str(tmp_path)), encoding="utf-8")
    monkeypatch.setenv("QTUI_RUNS", str(tmp_path / "runs"))
    return tmp_path


def report_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    return found


@each_run
@pytest.mark.filterwarnings("ignore:.*was made on")
def test_a_model_of_an_earlier_version_loads_and_gives_what_it_gave(name: str, place: Path) -> None:
    kept = load_file(place / "runs" / name / "given.safetensors")
    with inside(place), torch.no_grad():
        now = engine.load_quantized(place / "runs" / name)(kept["inputs"]).float()
    assert now.shape == kept["outputs"].shape
    assert not torch.equal(kept["outputs"][0], kept["outputs"][1]), "outputs that do not hang on the inputs would prove nothing"
    if (torch.backends.cpu.get_cpu_capability(), processor_maker()) == MADE_ON:
        torch.testing.assert_close(now, kept["outputs"], rtol=1e-5, atol=1e-5)
    else:
        # One step of an activation's grid at the end of the network is what other kernels may round otherwise.
        assert (now - kept["outputs"]).square().mean() < 1e-3 * kept["outputs"].square().mean()


@each_run
def test_a_recipe_of_an_earlier_version_loads_and_is_written_as_it_was(name: str, place: Path) -> None:
    path = place / "runs" / name / "recipe.yaml"
    recipe = engine.Recipe.load(path)
    assert recipe.to_yaml() == path.read_text(encoding="utf-8")
    assert recipe.qat.mode == "never" and recipe.threshold == "agreement:0.5"


def test_fingerprints_of_earlier_recipes_are_what_their_reports_say(place: Path) -> None:
    name = "network-int4-int8"
    recipe = engine.Recipe.load(place / "runs" / name / "recipe.yaml")
    assert recipe.fingerprint() == report_of(place / "runs" / name)["environment"]["recipe"]


@each_run
def test_show_tells_the_verdict_and_layers_of_an_earlier_run(name: str, place: Path) -> None:
    done = command(place, "show", name)
    report = report_of(place / "runs" / name)
    assert done.returncode == 0, done.stderr
    words = " ".join(done.stdout.split())
    assert f"{report['verdict']['chosen'].upper()} is chosen" in words or "fp32 stays" in words
    assert all(layer["name"] in done.stdout for layer in report["layers"] if layer["actual"] != "fp32")


def test_runs_lists_earlier_runs_with_their_state(place: Path) -> None:
    done = command(place, "runs")
    assert done.returncode == 0, done.stderr
    assert all(name in done.stdout for name in (*RUNS, STOPPED))


@each_run
def test_an_earlier_run_is_exported(name: str, place: Path) -> None:
    before = (place / "runs" / name / "model.safetensors").read_bytes()
    done = command(place, "export", name, "--to", "safetensors")
    assert done.returncode == 0, done.stdout + done.stderr
    entry = report_of(place / "runs" / name)["exports"][0]
    assert entry["format"] == "safetensors" and entry["verified"] and not entry["differs"]
    assert (place / "runs" / name / "model.safetensors").read_bytes() == before


@pytest.mark.slow
@each_run
def test_an_earlier_run_is_exported_to_onnx(name: str, place: Path) -> None:
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    done = command(place, "export", name, "--to", "onnx")
    assert done.returncode == 0, done.stdout + done.stderr
    entry = next(e for e in report_of(place / "runs" / name)["exports"] if e["format"] == "onnx")
    assert entry["verified"] and not entry["differs"] and (place / "runs" / name / entry["path"]).exists()


def test_an_earlier_run_that_was_stopped_goes_on_or_says_in_one_line_why_not(place: Path) -> None:
    folder = place / "runs" / STOPPED
    events = folder / "events.jsonl"
    before = len(events.read_text().splitlines())
    with subprocess.Popen(
        [sys.executable, "-m", "qtui", "resume", STOPPED, "--yes"], cwd=place, env=child_environment(),
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    ) as process:  # fmt: skip
        end = time.monotonic() + 300
        while process.poll() is None and time.monotonic() < end and "EpochFinished" not in _since(events, before):
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        said = process.communicate(timeout=60)[0]
    if "EpochFinished" in _since(events, before):
        epochs = [e["epoch"] for e in map(json.loads, events.read_text().splitlines()) if e["event"] == "EpochFinished"]
        assert epochs == sorted(set(epochs)), f"epochs were trained again: {epochs}"
        assert process.returncode in (130, 0, 3)
    else:
        last = said.strip().splitlines()[-1]
        assert process.returncode in (1, 2) and "Traceback" not in said and STOPPED in last


def _since(events: Path, before: int) -> str:
    return "\n".join(events.read_text().splitlines()[before:])


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("run", "simplecmm", "--yes"), 2),
        (("run", "simplecnn", "--weights", "there-is-none.safetensors", "--yes"), 1),
        (("run", "--recipe", "broken.yaml", "--yes"), 2),
        (("show", "no-such-run"), 2),
        (("show", STOPPED), 1),
        (("resume", RUNS[0]), 2),
        (("resume", "no-such-run"), 2),
        (("export", RUNS[0], "--to", "tflite"), 2),
    ],
)
def test_mistakes_end_in_one_line_and_the_recorded_exit_code(words: tuple[str, ...], code: int, place: Path) -> None:
    (place / "broken.yaml").write_text("model: simplecnn\ndata: {calibration: none}\n")
    done = command(place, *words)
    assert done.returncode == code, done.stderr
    assert done.stderr.strip() and "Traceback" not in done.stderr


def test_the_kept_models_are_those_that_the_factories_make(place: Path) -> None:
    """Else a run that goes on would do so with another network."""
    models.write_tiny_gpt2(place / "again")
    now, kept = load_file(place / "again" / "model.safetensors"), load_file(place / models.TINY_GPT2 / "model.safetensors")
    assert now.keys() == kept.keys() and all(torch.equal(now[name], kept[name]) for name in kept)
