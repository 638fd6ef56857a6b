"""Files of a run, edited, damaged or swapped for something that is no file: one line, at once, and never a traceback."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from engine.errors import EngineError, UsageError
from engine.events import replay
from engine.kernels import probe
from engine.reading import read_bytes, read_json
from engine.recipe.recipe import Recipe
from engine.report.report import Report
from engine.report.schema import REPORT, misfit
from engine.runs.rundir import list_runs
from qtui.cli import dispatch

FORM = {
    "metric": "accuracy", "value": 0.9, "interval": 0.01, "size_bytes": 1000, "kernel": "k", "error": {"mse": 1e-3, "sqnr_db": 30.0},
    "latency_ms": {"p50": 1.0, "p95": 2.0}, "latency_batched_ms": {"p50": 1.0, "p95": 2.0},
}  # fmt: skip
WHOLE: dict[str, Any] = {
    "schema": 1, "model": "m", "data": {"name": "d"}, "environment": {"device": "cpu"}, "exports": [], "qat": None, "ptq": FORM,
    "graph": {"nodes": 3, "trace_delta": 0.0, "fused": [], "refused": [], "untraced": []}, "layers": [], "baseline": FORM,
    "verdict": {"chosen": "ptq", "met": True, "text": "It is chosen."},
}  # fmt: skip
STATE = {"started": "2026-01-02T03:04:05", "model": "m", "data": "d", "state": "finished", "text": "", "pid": 1}


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "runs" / "20260102-m-d"
    folder.mkdir(parents=True)
    (folder / "report.json").write_text(json.dumps(WHOLE))
    (folder / "state.json").write_text(json.dumps(STATE))
    (folder / "events.jsonl").write_text('{"event": "Notice", "text": "x"}\n')
    (folder / "recipe.yaml").write_text("model: simplecnn\n")
    return folder


def fifo(path: Path) -> None:
    path.unlink(missing_ok=True)
    os.mkfifo(path)


def device(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.symlink_to("/dev/zero")


def folder(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.mkdir()


def huge(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(200_000_000)


def deep(path: Path) -> None:
    path.write_text("[" * 100_000)


def deep_and_whole(path: Path) -> None:
    path.write_text('{"schema": 1, "a": ' + "[" * 500 + "]" * 500 + "}")


PLACED: list[Callable[[Path], None]] = [fifo, device, folder, huge, deep, deep_and_whole]


@pytest.mark.parametrize("place", PLACED)
def test_what_is_no_sound_file_is_refused_at_once_and_in_one_line(run_folder: Path, place: Callable[[Path], None]) -> None:
    for name in ("report.json", "recipe.yaml", "events.jsonl", "state.json"):
        place(run_folder / name)
    for read in (lambda: Report.load(run_folder), lambda: Recipe.load(run_folder / "recipe.yaml")):
        with pytest.raises(EngineError) as caught:
            read()
        assert "\n" not in str(caught.value) and str(run_folder) in str(caught.value)
    if place not in (deep, deep_and_whole):
        with pytest.raises(EngineError, match="cannot be read"):
            replay.read(run_folder)
    else:
        assert replay.read(run_folder) == ()


@pytest.mark.parametrize("place", PLACED)
def test_a_run_whose_state_cannot_be_read_is_listed_as_damaged(
    run_folder: Path, place: Callable[[Path], None], capsys: pytest.CaptureFixture[str]
) -> None:
    place(run_folder / "state.json")
    (listed,) = list_runs(run_folder.parent)
    assert listed.state == "damaged" and "state.json cannot be read" in listed.text
    assert dispatch(["runs", str(run_folder.parent)]) == 0
    assert "damaged" in capsys.readouterr().out


@pytest.mark.parametrize("key", ["baseline", "value"])
@pytest.mark.parametrize("value", ["[1]", "1" + "0" * 400, "1e999", "NaN", "true", '"high"', "{}"])
def test_a_figure_of_the_wrong_type_or_beyond_all_numbers_makes_a_run_damaged(
    run_folder: Path, key: str, value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    text = json.dumps({**STATE, key: 0}).replace(f'"{key}": 0', f'"{key}": {value}')
    (run_folder / "state.json").write_text(text)
    assert [run.state for run in list_runs(run_folder.parent)] == ["damaged"]
    assert dispatch(["runs", str(run_folder.parent)]) == 0 and "damaged" in capsys.readouterr().out


def places_of(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [at] * bool(at) + [place for key, item in inner for place in places_of(item, (*at, key))]


@pytest.mark.parametrize("wrong", ["7", '"text"', "[]", "{}", "[[[1]]]", "true", "1" + "0" * 400, "null"])
def test_no_wrong_type_in_a_report_is_a_traceback(run_folder: Path, wrong: str, capsys: pytest.CaptureFixture[str]) -> None:
    for place in places_of(WHOLE):
        changed = json.loads(json.dumps(WHOLE))
        owner = changed
        for key in place[:-1]:
            owner = owner[key]
        owner[place[-1]] = "@here"
        (run_folder / "report.json").write_text(json.dumps(changed).replace('"@here"', wrong))
        assert dispatch(["show", str(run_folder)]) in (0, 1)
        assert dispatch(["export", str(run_folder), "--to", "onnx"]) == 1
        ends = capsys.readouterr().err.splitlines()
        assert 1 <= len(ends) <= 2 and all(line.startswith("error: ") for line in ends)


@pytest.mark.parametrize("key", ["size_bytes", "kernel", "metric"])
def test_a_report_that_lacks_a_figure_is_told_before_an_export(run_folder: Path, key: str, capsys: pytest.CaptureFixture[str]) -> None:
    baseline = {name: value for name, value in FORM.items() if name != key}
    (run_folder / "report.json").write_text(before := json.dumps({**WHOLE, "baseline": baseline}))
    for command in (["show", str(run_folder)], ["export", str(run_folder), "--to", "onnx"]):
        assert dispatch(command) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("error: ") and "lacks figures or holds odd ones" in line
    assert (run_folder / "report.json").read_text() == before


def test_the_part_of_a_report_that_is_damaged_is_named(run_folder: Path) -> None:
    (run_folder / "report.json").write_text(json.dumps({**WHOLE, "verdict": {"met": []}}))
    with pytest.raises(EngineError, match=r"damaged \(verdict.met is a list, not true or false\)"):
        Report.load(run_folder)


def test_what_a_real_run_writes_is_of_the_schema(main_run: Any) -> None:
    assert misfit(main_run.report.data, REPORT) is None
    assert [run.state for run in list_runs(main_run.folder.parent)] == ["finished"]
    kinds = [json.loads(line)["event"] for line in (main_run.folder / "events.jsonl").read_text().splitlines()]
    assert [type(event).__name__ for event in replay.read(main_run.folder)] == kinds


def test_an_event_with_figures_of_the_wrong_type_is_passed_over(run_folder: Path) -> None:
    lines = [
        {"event": "Measured", "which": "ptq", "figures": {"value": "high"}},
        {"event": "Layers", "which": "ptq", "rows": [None]},
        {"event": "Judgement", "which": "ptq", "verdict": {"text": 3}},
        {"event": "Progress", "stage": "s", "done": 10**301, "total": 3, "unit": "x"},
        {"event": "Notice", "text": "kept"},
    ]
    (run_folder / "events.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert [getattr(event, "text", None) for event in replay.read(run_folder)] == ["kept"]


@pytest.mark.parametrize("change", [{"kernels": []}, {"kernels": {"a": 3}}, {"isa": 3}, {"vnni": "yes"}, {"kernels": {}}])
def test_a_damaged_answer_of_the_probe_decides_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any]) -> None:
    whole = probe.Machine("AVX2", False, True, dict.fromkeys(probe.KERNELS))
    asked: list[int] = []
    monkeypatch.setenv("QTUI_CACHE", str(tmp_path))
    monkeypatch.setattr(probe, "_ask_child", lambda: asked.append(1) or whole)
    probe._probe.cache_clear()
    kept = tmp_path / f"probe-{probe.machine_key()}.json"
    kept.write_text(json.dumps({**asdict(whole), **change}))
    assert probe.probe() == whole and asked == [1]
    probe._probe.cache_clear()
    assert probe.probe() == whole and asked == [1], "what was asked is kept again"
    fifo(kept)
    probe._probe.cache_clear()
    assert probe.probe() == whole and asked == [1, 1]
    probe._probe.cache_clear()


def test_a_recipe_that_never_ends_is_refused(tmp_path: Path) -> None:
    fifo(tmp_path / "r.yaml")
    with pytest.raises(UsageError, match="no regular file"):
        Recipe.load(tmp_path / "r.yaml")


def test_a_limit_is_held_also_where_a_file_tells_no_size(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"12345")
    assert read_bytes(tmp_path / "a", 5) == b"12345"
    with pytest.raises(OSError, match="larger than"):
        read_bytes(tmp_path / "a", 4)
    (tmp_path / "b").write_text("[1, -1e400]")
    with pytest.raises(ValueError, match="too large"):
        read_json(tmp_path / "b", 100)
