"""A format of one's own: one module and one entry, and it is everywhere."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import driving
import pytest
from finished_runs import again

from engine.export import registry
from engine.export.registry import Format
from engine.report.report import Report
from qtui.__main__ import main
from qtui.arguments import Parser


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry.FORMATS, "toy", Format("toy", ("model.toy",), "Toy Runtime", {"graph": "toy_format"}))


def entry_of(directory: Path) -> dict[str, Any]:
    return next(entry for entry in Report.load(directory).data["exports"] if entry["format"] == "toy")


def is_whole(entry: dict[str, Any]) -> None:
    assert entry["verified"] and not entry["differs"] and entry["runtime"] == "toy 1" and entry["kernel"] == "toy integers"
    assert entry["parity"]["max_abs"] == 0 and entry["parity"]["agreement"] == 1 and entry["note"] == "a toy"
    assert entry["latency_ms"]["batch"] == 1 and entry["latency_batched_ms"]["batch"] == 64


@pytest.mark.usefixtures("toy")
def test_a_format_of_ones_own_goes_through_a_run(tiny_file: Path, own_cache: Path, tmp_path: Path) -> None:
    assert len((Path(__file__).parent / "toy_format.py").read_text().splitlines()) < 60
    out = tmp_path / "run"
    with driving.untimed():
        assert main([
            "run", f"{tiny_file}:make", "--export", "toy", "--limit", "64", "--threshold", "drop:0.5", "--out", str(out), "--yes",
        ]) == 0  # fmt: skip
    assert (out / "model.toy").is_file()
    is_whole(entry_of(out))
    assert [row["format"] for row in json.loads((out / "report.json").read_text())["runtimes"]] == ["fp32", "safetensors", "toy"]


@pytest.mark.usefixtures("toy")
def test_a_format_of_ones_own_goes_through_an_export(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with driving.untimed():
        assert main(["export", str(finished), "--to", "toy"]) == 0
    is_whole(entry_of(finished))
    (finished / "model.toy").write_bytes(b"something else")
    assert again(finished, "toy", overwrite=True).error is None
    is_whole(entry_of(finished))
    assert "toy" in registry.choices() and "toy" not in registry.formats_of("modules")
    capsys.readouterr()


@pytest.mark.usefixtures("toy")
def test_a_format_of_ones_own_refuses_before_any_work(tiny: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("toy_format.refuses", lambda model, recipe, plan: "toys are for children")
    outcome = driving.drive(tiny(export=("toy",)), tmp_path / "run")
    assert str(outcome.error) == "export to toy: toys are for children" and not (tmp_path / "run").exists()


def test_the_help_names_every_format() -> None:
    said = registry.choices()
    assert all(name in said for name in registry.FORMATS) and isinstance(Parser(), Parser)
