"""models, data, doctor, runs."""

from __future__ import annotations

import json
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import scripted

from engine.data.images import cifar10
from engine.kernels import probe
from engine.models import cached, registry
from engine.models import language_registry as language
from engine.runs import examine
from qtui import listing
from qtui.__main__ import main


def parsed(capsys: pytest.CaptureFixture[str], *argv: str) -> Any:
    assert main([*argv, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.fixture
def _scripted(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in scripted.REPLACED:
        room, _, module = name.rpartition(".")
        monkeypatch.setitem(sys.modules, name, sys.modules.get(name, ModuleType(name)))
        monkeypatch.setattr(import_module(room), module, None, raising=False)
    scripted.install()


def test_models_tell_the_recorded_accuracy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(registry, "WEIGHTS", tmp_path)
    monkeypatch.setenv("QTUI_CACHE", str(tmp_path / "cache"))
    (tmp_path / "simplecnn-digits.safetensors").touch()
    (tmp_path / "simplecnn-digits.json").write_text('{"test_accuracy": 0.9871}')
    (tmp_path / "simplecnn-cifar10.safetensors").touch()
    (tmp_path / "simplecnn-cifar10.json").write_text("{")
    found = parsed(capsys, "models", "--filter", "simple*")
    assert found[0]["name"] == "simplecnn" and found[0]["weights"] == {"digits": 0.9871, "cifar10": None}
    main(["models"])
    assert "digits 98.71 %, cifar10" in capsys.readouterr().out
    (tmp_path / "simplecnn-cifar10.safetensors").unlink()
    assert parsed(capsys, "models", "--filter", "simple*")[0]["weights"] == {"digits": 0.9871}
    assert parsed(capsys, "models", "--filter", "nothing*") == []


def test_models_tell_of_weights_that_were_trained_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("QTUI_CACHE", str(tmp_path))
    for data in ("digits", "animals", str(tmp_path)):
        path = cached.cached_weights("simplecnn", data)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    record = {"model": "simplecnn", "data": "images", "test_accuracy": 0.5}
    path.with_suffix(".json").write_text(json.dumps(record))
    (row,) = parsed(capsys, "models", "--filter", "simple*")
    assert row["where"] == {"digits": "package", "cifar10": "package", "animals": "cache", "images": "cache"}
    assert row["weights"]["images"] == 0.5 and row["weights"]["animals"] is None and row["weights"]["digits"] > 0.9
    main(["models", "--filter", "simple*"])
    assert "animals (trained here), images 50.00 % (trained here)" in " ".join(capsys.readouterr().out.split())


def test_torchvisions_models_are_listed_after_our_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    everything = parsed(capsys, "models")
    assert everything[0]["name"] == "simplecnn" and len(everything) > 80
    found = parsed(capsys, "models", "--filter", "mobilenet*")
    assert [row["name"] for row in found] == ["mobilenet_v2", "mobilenet_v3_small", "mobilenet_v3_large"]
    assert found[0]["params"] == 3504872 and found[0]["size"] == 224 and found[0]["shape"] is None
    assert found[0]["weights"] == {"imagenet": pytest.approx(0.72154)} and found[0]["where"] == {"imagenet": "to download"}
    kept = tmp_path / "hub" / "checkpoints" / "mobilenet_v2-01234567.pth"
    kept.parent.mkdir(parents=True)
    with kept.open("wb") as file:
        file.truncate(found[0]["bytes"])
    main(["models", "--filter", "mobilenet*"])
    assert "imagenet 72.15 % (cached)" in " ".join(capsys.readouterr().out.split())


def test_data_tells_what_lies_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("QTUI_CACHE", str(tmp_path))
    states = {d["name"]: d["state"] for d in parsed(capsys, "data")}
    assert (states["digits"], states["cifar10"]) == ("offline", "to download")
    (tmp_path / "data" / cifar10.FOLDER).mkdir(parents=True)
    assert {d["name"]: d["state"] for d in parsed(capsys, "data")}["cifar10"] == "cached"
    assert listing.CACHED_AS["cifar10"] == cifar10.FOLDER


def test_texts_are_listed_with_the_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    states = {d["name"]: d["state"] for d in parsed(capsys, "data")}
    assert (states["python-docs"], states["wikitext2"]) == ("offline", "to download")
    kept = tmp_path / "datasets--ggml-org--ci" / "snapshots" / "abc" / "wikitext-2-raw-v1.zip"
    kept.parent.mkdir(parents=True)
    kept.touch()
    assert {d["name"]: d["state"] for d in parsed(capsys, "data")}["wikitext2"] == "cached"


def test_language_models_are_listed_by_their_perplexity(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(language, "WEIGHTS", tmp_path)
    (tmp_path / "gpt2-mini").mkdir()
    (tmp_path / "gpt2-mini" / "model.safetensors").touch()
    (tmp_path / "gpt2-mini" / "record.json").write_text('{"data": "python-docs", "test_perplexity": 61.238}')
    mini, large = parsed(capsys, "models", "--filter", "gpt2*")
    assert (mini["metric"], mini["size"], mini["params"], mini["shape"]) == ("perplexity", 512, 3_814_912, None)
    assert (mini["weights"], mini["where"]) == ({"python-docs": 61.238}, {"python-docs": "package"})
    assert large["weights"] == {"openai-community/gpt2": None} and large["where"] == {"openai-community/gpt2": "to download"}
    main(["models", "--filter", "gpt2*"])
    said = " ".join(capsys.readouterr().out.split())
    assert "512 tokens" in said and "python-docs 61.24" in said and "openai-community/gpt2 (to download)" in said
    assert parsed(capsys, "models", "--filter", "simple*")[0]["metric"] == "accuracy"


@pytest.mark.usefixtures("_scripted")
@pytest.mark.parametrize(("saturates", "bits"), [(True, "7 bits"), (False, "8 bits"), (None, "not measured")])
def test_doctor(saturates: bool | None, bits: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    machine = probe.Machine("AVX2", False, saturates, {"qconv_pointwise": None, "qlinear_pointwise": "gives [wrong] sums"})
    monkeypatch.setattr(probe, "probe", lambda: machine)
    monkeypatch.setattr(examine.gpus, "gpus", lambda: [{"name": "H", "free_bytes": 2**30, "total_bytes": 2**31}])
    found = parsed(capsys, "doctor")
    assert found["saturates"] is saturates and found["kernels"]["qlinear_pointwise"] == "gives [wrong] sums"
    main(["doctor"])
    out = capsys.readouterr().out
    assert bits in out and "gives [wrong] sums" in out and "1.0 of 2.0 GiB free" in out


@pytest.mark.usefixtures("_scripted")
def test_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = parsed(capsys, "runs", str(tmp_path))
    assert [run["state"] for run in found] == ["finished", "cancelled"]
    assert found[0]["directory"] == str(tmp_path / "20260101-simplecnn-digits")
    main(["runs"])
    out = capsys.readouterr().out
    assert "98.00 %" in out and "23.40" in out and "gpt2 on text, 2026-01-01 09:20" in out
    assert main(["runs", str(tmp_path / "none")]) == 2
