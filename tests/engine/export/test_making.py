"""Exports of runs: what is written, what the report says of it, and what stays when something fails."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import driving
import pytest
from finished_runs import again, contents, run

from engine.errors import EngineError, UsageError
from engine.events.event import Finished, Notice, Table
from engine.export import making, registry
from engine.export.finished import merged
from engine.recipe.recipe import Recipe
from engine.report.mismatch import DIFFERS, differs, entered
from engine.report.report import Report
from engine.report.runtimes import fastest, runtimes

ALL = ("safetensors", "onnx", "openvino", "pt2")
missing = [name for entry in registry.formats_of("graph").values() for name in entry.missing(entry.writes + entry.runs)]
needs = pytest.mark.skipif(bool(missing), reason="needs onnx, onnxruntime, openvino")


def test_the_recipe_knows_the_formats_of_the_registry() -> None:
    for name in registry.FORMATS:
        assert Recipe.make(model="m", export=[name]).export == (name,)
    with pytest.raises(UsageError, match="available in this version: " + ", ".join(registry.FORMATS)):
        Recipe.make(model="m", export=["onxx"])
    with pytest.raises(UsageError, match="did you mean onnx"):
        registry.find("onxx")


@needs
def test_a_run_ends_with_four_exports_and_their_parity(tiny: Callable[..., Any], tmp_path: Path) -> None:
    out = tmp_path / "run"
    outcome = run(tiny(export=ALL), out)
    exports = outcome.data["exports"]
    assert [e["format"] for e in exports] == list(ALL)
    for entry in exports:
        assert entry["verified"] and entry["parity"]["agreement"] >= 0.95 and 0 <= entry["value"] <= 1
        assert entry["latency_ms"]["batch"] == 1 and entry["latency_batched_ms"]["batch"] == 64
        size = sum((out / name).stat().st_size for name in registry.find(entry["format"]).files)
        assert entry["size_bytes"] == size and (out / entry["path"]).is_file()
    assert not [path for path in out.iterdir() if path.name.startswith(".")]
    assert json.loads((out / "report.json").read_text())["exports"] == json.loads(
        json.dumps(exports, default=str).replace("Infinity", "null")
    )
    text = (out / "report.md").read_text()
    assert "## Latency per runtime" in text and "Fastest on this machine: " in text
    assert [t.key for t in outcome.of(Table)][-1] == "exports"


@needs
def test_a_finished_run_is_exported_later(finished: Path) -> None:
    before = contents(finished)
    outcome = again(finished, "onnx", "pt2")
    assert outcome.error is None
    assert [e["format"] for e in outcome.data["exports"]] == ["safetensors", "onnx", "pt2"]
    assert Report.load(finished).data["exports"][1]["verified"]
    after = contents(finished)
    changed = {name for name in after if before.get(name) != after[name]}
    assert changed == {"model.onnx", "model.pt2", "report.json", "report.md"}


def test_an_earlier_export_is_read_back_beside_a_later_one(finished: Path) -> None:
    assert again(finished, "pt2").error is None
    first = (finished / "model.pt2").read_bytes()
    outcome = again(finished, "safetensors")
    assert [(e["format"], e["verified"]) for e in outcome.data["exports"]] == [("safetensors", True), ("pt2", True)]
    assert (finished / "model.pt2").read_bytes() == first
    (finished / "model.pt2").write_bytes(first[:-100])
    changed = again(finished, "safetensors").data
    assert not changed["exports"][1]["verified"] and "was changed since it was exported" in changed["exports"][1]["reason"]
    assert [row["format"] for row in changed["runtimes"]] == []
    assert again(finished, "pt2", overwrite=True).data["exports"][1]["verified"]


@pytest.mark.parametrize("name", ["model.onnx", "model.pt2", "model.safetensors"])
def test_an_export_is_no_weights_file(finished: Path, name: str) -> None:
    from engine.models.weights_file import read_state

    (finished / "model.onnx").write_bytes(b"x")
    (finished / "model.pt2").write_bytes(b"x")
    with pytest.raises(EngineError, match="not weights: give the"):
        read_state(finished / name)


@pytest.mark.parametrize(("name", "module"), [("onnx", "onnxruntime"), ("openvino", "openvino")])
def test_a_missing_runtime_leaves_a_file_that_is_not_verified(
    finished: Path, monkeypatch: pytest.MonkeyPatch, name: str, module: str
) -> None:
    pytest.importorskip("onnx")
    entry = registry.find(name)
    if name == "openvino":
        # What writes this file is what runs it: it is there to write, and gone when the file is read back.
        pytest.importorskip("openvino")
        monkeypatch.setattr(registry, "FORMATS", {**registry.FORMATS, name: replace(entry, runs=("openvino_runtime_that_is_gone",))})
        module = "openvino_runtime_that_is_gone"
    else:
        monkeypatch.setitem(sys.modules, module, None)
    outcome = again(finished, name)
    found = outcome.data["exports"][1]
    command = f"uv pip install {module.replace('_', '-')}"
    assert (found["verified"], found["parity"], found["value"], found["install"]) == (False, None, None, command)
    assert all((finished / file).is_file() for file in entry.files) and command in found["reason"]
    report = (finished / "report.md").read_text()
    assert command in report and found["latency_ms"] == {}
    assert any(n.level == "warning" and "not verified" in n.text for n in outcome.of(Notice))


def test_what_writes_onnx_is_missing_and_the_run_goes_on(tiny: Callable[..., Any], tmp_path: Path) -> None:
    with patch.object(registry.Format, "missing", lambda entry, packages: tuple(p for p in packages if p == "onnx")):
        outcome = run(tiny(export=("onnx", "pt2")), tmp_path / "run")
    safetensors, onnx, pt2 = outcome.data["exports"]
    assert safetensors["verified"] and pt2["verified"] and not onnx["verified"]
    assert onnx["reason"] == "onnx needs onnx: uv pip install onnx, then export again" and onnx["path"] == ""
    assert any(n.level == "warning" and "onnx was not exported" in n.text for n in outcome.of(Notice))
    assert not (tmp_path / "run" / "model.onnx").exists()


def test_a_failure_overwrites_nothing(finished: Path) -> None:
    (finished / "model.pt2").write_bytes(b"an earlier export")
    before = contents(finished)
    with patch("engine.export.pt2.torch.export.save", side_effect=OSError(28, "No space left on device")):
        outcome = again(finished, "pt2", overwrite=True)
    assert isinstance(outcome.error, EngineError) and "No space left on device" in str(outcome.error) and "\n" not in str(outcome.error)
    after = contents(finished)
    assert {name for name in after if before.get(name) != after[name]} <= {"report.json", "report.md"}


@needs
@pytest.mark.parametrize("lacking", [("onnx",), ("onnx", "onnxruntime")])
def test_an_export_that_cannot_be_made_again_stays_in_the_report_with_its_file(finished: Path, lacking: tuple[str, ...]) -> None:
    assert again(finished, "onnx", "pt2").error is None
    before, content = Report.load(finished).data, (finished / "model.onnx").read_bytes()
    with patch.object(registry.Format, "missing", lambda entry, packages: tuple(p for p in packages if p in lacking)):
        outcome = again(finished, "onnx", overwrite=True)
        assert isinstance(outcome.error, EngineError) and "onnx was not exported: onnx needs onnx" in str(outcome.error)
        assert [row["format"] for row in Report.load(finished).data["runtimes"]].count("onnx") == (len(lacking) == 1)
        assert again(finished, "pt2", overwrite=True).error is None
    after = Report.load(finished).data
    assert (finished / "model.onnx").read_bytes() == content
    entries = [next(e for e in found["exports"] if e["format"] == "onnx") for found in (before, after)]
    assert all(entries[1][key] == entries[0][key] for key in ("path", "sha256", "verified", "parity", "value", "size_bytes", "runtime"))
    assert entries[1]["verified"] and entries[1]["latency_ms"] and "reason" not in entries[1]


@pytest.mark.parametrize("damage", ["flipped", "shorter", "gone"])
def test_a_model_file_that_changed_since_the_run_is_refused(finished: Path, damage: str) -> None:
    path = finished / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.unlink()
    if damage != "gone":
        path.write_bytes(bytes(content) if damage == "flipped" else bytes(content[:-10]))
    before = contents(finished)
    outcome = again(finished, "pt2")
    assert isinstance(outcome.error, EngineError) and outcome.error.exit_code == 1 and "\n" not in str(outcome.error)
    assert ("does not exist" if damage == "gone" else "was changed since the run") in str(outcome.error)
    assert contents(finished) == before


def test_an_export_that_differs_in_form_is_not_verified(finished: Path) -> None:
    """As when another file takes the place of the one that was written."""
    import torch

    from engine.export.base import Runner

    with patch("engine.export.pt2.load", lambda *_: Runner("torch", lambda part: part, lambda part: torch.zeros(part.count, 3))):
        outcome = again(finished, "pt2")
    entry = outcome.data["exports"][1]
    assert not entry["verified"] and "is not an export of this run" in entry["reason"]


@pytest.mark.parametrize("answers", ["others", "noisy", "nan"])
def test_a_file_whose_outputs_are_not_what_was_measured_is_no_success(finished: Path, answers: str) -> None:
    import torch

    from engine import load_quantized
    from engine.export.base import Runner

    model = load_quantized(finished)
    changes = {"others": lambda y: -y, "noisy": lambda y: 1.6 * y, "nan": lambda y: y * torch.nan}
    change = changes[answers]
    with patch("engine.export.pt2.load", lambda *_: Runner("other 1", lambda part: part.args[0], lambda x: change(model(x).clone()))):
        outcome = again(finished, "pt2")
    report = Report.load(finished)
    entry = report.data["exports"][1]
    assert outcome.error is None and (finished / "model.pt2").is_file()
    assert not entry["verified"] and entry["latency_ms"] == {} and [r["format"] for r in report.data["runtimes"]] == []
    assert "pt2" not in fastest(report.data) and all(one.file != "model.pt2" for one in runtimes(report.data))
    said = "its outputs are NaN or infinite" if answers == "nan" else DIFFERS
    assert said in entry["reason"] and said in (finished / "report.md").read_text()
    assert any(n.level == "warning" and said in n.text for n in outcome.of(Notice))
    if answers != "nan":
        assert entry["differs"] and entry["parity"]["sqnr_db"] < 6 and said in outcome.of(Finished)[-1].text
        assert DIFFERS in str(outcome.of(Table)[-1].rows)


def test_a_report_without_the_word_is_judged_by_its_parity() -> None:
    assert differs({"parity": {"agreement": 0.6, "sqnr_db": 6.2}}) and differs({"parity_cached": {"agreement": 1.0, "sqnr_db": 5.2}})
    assert differs({"parity": {"agreement": 1.0, "sqnr_db": float("nan")}})
    assert not differs({"parity": {"agreement": 0.97, "sqnr_db": 18.0}}) and not differs({"parity": {"agreement": 1.0, "sqnr_db": None}})
    assert not differs({"parity": None}) and not differs({})


@pytest.mark.parametrize(
    ("agreement", "sqnr_db", "native_sqnr_db", "fp32_sqnr_db", "apart", "said"),
    [
        # The same integers, to within roundings, at any noise of the quantization.
        (1.0, 45.0, 30.0, 29.8, False, ""), (1.0, 45.0, 60.0, 44.8, False, ""), (0.97, 18.0, 12.0, 11.0, False, ""),
        # All answers agree, and the outputs are those of something else.
        (1.0, 15.0, 40.0, 15.0, True, ""), (1.0, 7.7, 12.0, 6.5, True, ""),
        # Few bits: what is rounded by itself may be as far from the measured model as both are from fp32, and half as much again.
        (1.0, 15.5, 16.0, 14.7, False, "further from the measured model (15.5 dB) than that is from fp32 (16.0 dB)"),
        (1.0, 12.9, 16.0, 11.5, True, ""),
        (1.0, 25.0, 40.0, 24.9, False, "further from the measured model (25.0 dB) than that is from fp32 (40.0 dB)"),
        # What is nearer to fp32 is right, however few of its answers agree.
        (0.52, 2.2, 2.2, 38.0, False, "closer to fp32 than the measured model (38.0 dB against 2.2 dB)"),
        (1.0, 20.8, 20.8, 59.3, False, "closer to fp32"), (1.0, 15.9, 15.9, 47.3, False, "closer to fp32"),
        (1.0, 24.0, 24.0, 33.0, False, "closer to fp32"), (1.0, 50.0, 50.0, 80.0, False, ""), (1.0, 20.0, 20.0, 23.0, False, "further"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("key", ["parity", "parity_cached"])
def test_a_file_is_judged_by_its_noise_beside_that_of_the_measured_model(
    agreement: float, sqnr_db: float, native_sqnr_db: float, fp32_sqnr_db: float, apart: bool, said: str, key: str
) -> None:
    parity = {"agreement": agreement, "sqnr_db": sqnr_db, "native_sqnr_db": native_sqnr_db, "fp32_sqnr_db": fp32_sqnr_db, "compared": 4000}
    entry: dict[str, Any] = {"verified": True, key: parity}
    if said == "further":
        parity["sqnr_db"] = 16.9
        assert entered(entry)
        return
    assert entered(entry) is apart and entry["verified"] is not apart
    assert (said in entry["alarm"]) if said else "alarm" not in entry
    assert not apart or f"where the measured model has {native_sqnr_db:.1f} dB to fp32" in entry["reason"]


def test_answers_that_are_near_ties_are_no_other_computation() -> None:
    """Where rounding itself turned a third of the answers, a file that rounds once more may turn as many, and no more."""
    parity = {"agreement": 0.64, "sqnr_db": 32.4, "native_sqnr_db": 23.4, "fp32_sqnr_db": 26.1, "compared": 4000}
    assert differs({"parity": parity}) and differs({"parity": parity | {"native_agreement": 0.97}})
    assert not differs({"parity": parity | {"native_agreement": 0.6}})
    assert differs({"parity": parity | {"native_agreement": 0.6, "sqnr_db": 7.7}})


@pytest.mark.parametrize("answers", ["of fp32", "noisy"])
def test_equal_answers_do_not_make_an_export_the_measured_model(finished: Path, answers: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that is exact where the measured model is not is an alarm about the latter; a noisy one is another computation."""
    import torch

    from engine import load_quantized
    from engine.export.base import Runner

    model = load_quantized(finished)

    class Exact(torch.nn.Module):
        """As if a fifteenth of the measured model's outputs were its kernels' error."""

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            found: torch.Tensor = model(x)
            return found + found.flip(1) / 15

    exact = Exact()
    monkeypatch.setattr("engine.lowering.graph.lowering.fp32_forms", lambda gm: {"fp32": exact})
    torch.manual_seed(0)

    def run_file(x: torch.Tensor) -> torch.Tensor:
        if answers == "of fp32":
            return exact(x)
        wanted = model(x)
        noise = torch.randn_like(wanted)
        return wanted + noise * wanted.norm() / noise.norm() * 10 ** (-13 / 20)

    with patch("engine.export.pt2.load", lambda *_: Runner("other 1", lambda part: part.args[0], run_file)):
        outcome = again(finished, "pt2")
    entry = outcome.data["exports"][1]
    parity, text = entry["parity"], (finished / "report.md").read_text()
    assert 20 < parity["native_sqnr_db"] < 40
    if answers == "of fp32":
        assert entry["verified"] and not entry["differs"] and parity["fp32_sqnr_db"] > 100
        for told in (entry["alarm"], text, outcome.of(Finished)[-1].text, " ".join(n.text for n in outcome.of(Notice))):
            assert "closer to fp32 than the measured model" in told
    else:
        assert entry["differs"] and parity["sqnr_db"] == pytest.approx(13, abs=0.2) and DIFFERS in text


def test_few_answers_tell_little() -> None:
    def parity(same: int, compared: int) -> dict[str, Any]:
        return {"parity": {"agreement": same / compared, "sqnr_db": 11.0, "compared": compared}}

    # Thirteen of sixteen are no less than nine in ten, as far as sixteen can tell; 208 of 256 are.
    assert not differs(parity(13, 16)) and differs(parity(208, 256)) and differs(parity(0, 16)) and not differs(parity(256, 256))


def test_the_fastest_runtime_is_none_that_differs() -> None:
    def entry(name: str, time: float, agreement: float) -> dict[str, Any]:
        times = {key: {"p50": time, "p95": time} for key in ("latency_ms", "latency_batched_ms")}
        return {"format": name, "path": name, "runtime": name, "parity": {"agreement": agreement, "sqnr_db": 30.0}, **times}

    rows = [entry("fp32", 4.0, 1.0), entry("safetensors", 3.0, 1.0), entry("onnx", 2.0, 1.0), entry("openvino", 1.0, 0.6)]
    report = {"baseline": None, "exports": rows[1:], "runtimes": rows}
    assert "onnx at batch 1" in fastest(report) and "openvino" not in fastest(report)
    assert "openvino" not in fastest({"baseline": rows[0], "exports": rows[1:]})


def test_earlier_exports_stay_in_the_report() -> None:
    before = [{"format": "safetensors", "path": "a"}, {"format": "onnx", "path": "b"}]
    failed = making.failed(registry.find("onnx"), "why")
    assert merged(before, [failed])[1]["path"] == "b"
    assert merged(before[:1], [failed])[1]["reason"] == "why"


def test_the_fastest_runtime_is_named_for_each_batch() -> None:
    def entry(name: str, single: float, batched: float) -> dict[str, Any]:
        times = {"latency_ms": {"p50": single, "p95": single}, "latency_batched_ms": {"p50": batched, "p95": batched}}
        return {"format": name, "path": name, "runtime": f"{name} 1", **times}

    baseline = {"kernel": "torch fp32", **{k: v for k, v in entry("x", 3.0, 30.0).items() if k.startswith("latency")}}
    report = {"baseline": baseline, "exports": [entry("onnx", 1.0, 9.5), entry("openvino", 2.0, 9.0)]}
    assert (
        fastest(report)
        == "Fastest on this machine: onnx 1 at batch 1 (1.00 ms); openvino 1 at batch 64 (9.00 ms, with onnx 1 within a tenth)."
    )
    assert fastest({"baseline": baseline, "exports": []}) == "" and len(runtimes(report)) == 3
    assert runtimes({"exports": [None, {"latency_ms": {"p50": None}}], "baseline": None}) == ()


def test_the_command_line_exports_and_says_what_is_wrong(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from qtui.__main__ import main

    with driving.untimed():
        assert main(["export", str(finished), "--to", "pt2", "--json"]) == 0
    told = capsys.readouterr()
    assert [e["format"] for e in json.loads(told.out)["exports"]] == ["safetensors", "pt2"]
    assert "model.pt2" in told.err
    assert main(["export", str(finished), "--to", "onxx"]) == 2
    assert capsys.readouterr().err == "error: export format 'onxx' is not known: did you mean onnx?\n"
    import torch

    from engine import load_quantized
    from engine.export.base import Runner

    model = load_quantized(finished)
    with (
        driving.untimed(),
        patch("engine.export.pt2.load", lambda *_: Runner("other 1", lambda part: part.args[0], lambda x: -torch.as_tensor(model(x)))),
    ):
        assert main(["export", str(finished), "--to", "pt2", "--force"]) == 3
    capsys.readouterr()
    with driving.untimed():
        assert main(["export", str(finished), "--to", "safetensors"]) == 0, "only the files that are asked for decide"
    capsys.readouterr()
    with (finished / "model.safetensors").open("ab") as file:
        file.write(b"x")
    assert main(["export", str(finished), "--to", "pt2"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: ") and "was changed since the run" in said and said.count("\n") == 1


LAYERS = {"compared": 37, "rms_steps": 0.76, "worst": "blocks_4", "outputs_sqnr_db": None}
APART = {"agreement": 0.6, "sqnr_db": 2.2, "native_sqnr_db": 9.2, "fp32_sqnr_db": 8.0, "compared": 4000}


def test_a_network_that_amplifies_roundings_is_no_wrong_export_where_each_layer_is_right() -> None:
    entry: dict[str, Any] = {"verified": True, "parity": dict(APART), "layers_alone": dict(LAYERS)}
    assert not entered(entry) and entry["verified"] and "differs" in entry
    assert "each of its 37 rounded values is" in entry["alarm"] and "judge the file by its own figures" in entry["alarm"]
    for wrong in ({"rms_steps": 1.4}, {"rms_steps": float("inf")}, {"rms_steps": float("nan")}, {"outputs_sqnr_db": 12.0}):
        assert entered({"verified": True, "parity": dict(APART), "layers_alone": {**LAYERS, **wrong}})
    assert entered({"verified": True, "parity": dict(APART), "layers_alone": None})


@pytest.mark.parametrize("rms_steps", [0.41, 1.4])
def test_noise_above_that_of_the_quantization_is_called_rounding_where_each_layer_is_within_a_step(rms_steps: float) -> None:
    parity = APART | {"agreement": 1.0, "sqnr_db": 26.6, "native_sqnr_db": 26.7, "fp32_sqnr_db": 28.0}
    entry: dict[str, Any] = {"verified": True, "parity": parity, "layers_alone": LAYERS | {"rms_steps": rms_steps}}
    assert not entered(entry) and entry["alarm"].startswith("further from the measured model (26.6 dB) than that is from fp32 (26.7 dB)")
    assert ("each of its 37 rounded values is" in entry["alarm"]) is (rms_steps < 1)
    assert ("that is more than rounding" in entry["alarm"]) is (rms_steps > 1)
