"""engine/runs/rundir.py and engine/report/report.py: what stands in runs/, whatever else stands there too."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from driving import tree

from engine.errors import EngineError, UsageError
from engine.events.event import Measured, Notice, Progress
from engine.paths import cache_dir, write_atomic
from engine.report.report import Report
from engine.runs.rundir import RunDir, find_run, list_runs, new_directory, runs_root


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("QTUI_RUNS", str(tmp_path / "runs"))
    (tmp_path / "runs").mkdir()
    return tmp_path / "runs"


def put(runs: Path, name: str, **changes: Any) -> Path:
    about = {"started": "2026-01-01T10:00:00", "model": "m", "data": "d", "state": "finished", "text": "", "pid": os.getpid()} | changes
    (runs / name).mkdir(parents=True)
    (runs / name / "state.json").write_text(json.dumps({key: value for key, value in about.items() if value is not ...}))
    return runs / name


def dead_pid() -> int:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    return child.pid


def test_runs_are_listed_newest_first(runs: Path) -> None:
    put(runs, "b", started="2026-01-02T10:00:00")
    put(runs, "a", started="2026-01-03T10:00:00")
    put(runs, "d", started="2026-01-01T10:00:00")
    put(runs, "c", started="2026-01-02T10:00:00")
    assert [run.directory.name for run in list_runs(runs)] == ["a", "c", "b", "d"]


def test_a_run_is_listed_as_it_was_noted(runs: Path) -> None:
    path = put(runs, "a", chosen="ptq", baseline=0.9, value=0.8, text="why")
    (run,) = list_runs(runs)
    assert (run.directory, run.model, run.data, run.state) == (path, "m", "d", "finished")
    assert (run.chosen, run.baseline, run.value, run.text) == ("ptq", 0.9, 0.8, "why")


def test_where_there_are_no_runs(runs: Path, tmp_path: Path) -> None:
    assert list_runs(runs) == [] and list_runs(tmp_path / "nowhere") == []
    (tmp_path / "file").write_text("")
    assert list_runs(tmp_path / "file") == []


RUBBISH = [
    "", "{", "[]", "null", "3", '"text"', "{}", '{"state": "finished"}', "\0\1\2",
    '{"state": "running", "pid": null, "started": "x", "model": "m", "data": "d"}',
    '{"state": "running", "pid": "me", "started": "x", "model": "m", "data": "d"}',
    '{"state": "running", "pid": [1], "started": "x", "model": "m", "data": "d"}',
    '{"state": "running", "started": "x", "model": "m", "data": "d"}',
    '{"state": "unheard", "started": "x", "model": "m", "data": "d"}',
    '{"state": ["finished"], "started": "x", "model": "m", "data": "d"}',
    '{"state": "finished", "started": 3, "model": "m", "data": "d"}',
    '{"state": "finished", "started": "x", "model": null, "data": "d"}',
    '{"state": "finished", "started": "x", "model": "m", "data": "d", "value": "high"}',
]  # fmt: skip


@pytest.mark.parametrize("content", RUBBISH)
def test_rubbish_is_passed_over(runs: Path, content: str) -> None:
    put(runs, "good")
    (runs / "bad").mkdir()
    (runs / "bad" / "state.json").write_text(content)
    assert [run.directory.name for run in list_runs(runs)] == ["good"]


def test_what_is_no_run_is_passed_over(runs: Path) -> None:
    put(runs, "good")
    (runs / "file").write_text("x")
    (runs / "empty").mkdir()
    (runs / "folder" / "state.json").mkdir(parents=True)
    (runs / "binary").mkdir()
    (runs / "binary" / "state.json").write_bytes(b"\xff\xfe\x00")
    (runs / "link").symlink_to(runs / "nowhere")
    assert [run.directory.name for run in list_runs(runs)] == ["good"]


def test_a_run_whose_process_is_gone_has_failed(runs: Path) -> None:
    put(runs, "mine", state="running")
    put(runs, "dead", state="running", pid=dead_pid())
    put(runs, "huge", state="running", pid=2**80)
    put(runs, "zero", state="running", pid=0)
    put(runs, "done", state="finished", pid=dead_pid())
    states = {run.directory.name: run.state for run in list_runs(runs)}
    assert states == {"mine": "running", "dead": "failed", "huge": "failed", "zero": "failed", "done": "finished"}


def test_runs_are_found_by_path_and_by_the_beginning_of_their_name(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = put(runs, "20260101-simplecnn-digits"), put(runs, "20260102-simplecnn-digits")
    assert find_run(str(one)) == one and find_run("20260101") == one and find_run("20260102-simplecnn-digits") == two
    monkeypatch.chdir(runs)
    assert find_run("20260101-simplecnn-digits").resolve() == one


def test_an_exact_name_wins_over_longer_ones(runs: Path) -> None:
    exact = put(runs, "20260101-m-d")
    put(runs, "20260101-m-d-2")
    assert find_run("20260101-m-d") == exact
    with pytest.raises(UsageError, match=r"could be 20260101-m-d.*give more of the name"):
        find_run("20260101")


@pytest.mark.parametrize("name", ["nothing", "/no/such/place", "2026"])
def test_a_run_that_is_not_there(runs: Path, name: str) -> None:
    with pytest.raises(UsageError, match="there are no runs in"):
        find_run(name)
    put(runs, "other-run")
    with pytest.raises(UsageError, match=r"is not known: .*other-run") as caught:
        find_run(name)
    assert name in str(caught.value) and "\n" not in str(caught.value)


def test_a_folder_without_a_state_is_said_to_be_no_run(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"holds no state\.json, so it is no run"):
        find_run(str(tmp_path))


@pytest.mark.parametrize(("content", "says"), [('{"schema": 99}', "another version, which has 99"), ('{"schema": "1"}', "is not a report")])
def test_a_report_of_another_version_and_a_damaged_one_are_told_apart(tmp_path: Path, content: str, says: str) -> None:
    (tmp_path / "report.json").write_text(content)
    with pytest.raises(EngineError, match=rf"{says}.*run it again with `qtui run --recipe {tmp_path}/recipe\.yaml`"):
        Report.load(tmp_path)


def test_new_folders_never_meet(runs: Path) -> None:
    seen = set()
    for _ in range(3):
        path = new_directory("path/to/file.py:make me", "/data/my images")
        assert path.parent == runs and path.name.endswith(("make-me-my-images", "-2", "-3"))
        path.mkdir()
        seen.add(path)
    assert len(seen) == 3


def test_a_folder_gives_its_own_name_alone_and_no_name_is_too_long(runs: Path, tmp_path: Path) -> None:
    place = tmp_path / "models" / "my-gpt2"
    place.mkdir(parents=True)
    assert new_directory(f"{place}/", "/text/my.txt").name.partition("-")[2].partition("-")[2] == "my-gpt2-my-txt"
    assert new_directory("openai-community/gpt2", "wikitext2").name.endswith("-openai-community-gpt2-wikitext2")
    new_directory("simplecnn", "x" * 255).mkdir()


def test_the_root_is_runs_unless_said_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("QTUI_RUNS", raising=False)
    assert runs_root() == Path("runs")


def test_the_cache_is_where_it_is_said_to_be(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setenv("QTUI_CACHE", str(tmp_path / "own"))
    assert cache_dir() == tmp_path / "own"
    monkeypatch.delenv("QTUI_CACHE")
    assert cache_dir() == tmp_path / "xdg" / "qtui"


# One run's folder.


def test_an_earlier_run_moves_aside_whole_and_comes_back(tmp_path: Path) -> None:
    first = RunDir(tmp_path / "run", "m", "d", 0)
    for name in ("recipe.yaml", "report.json", "report.md", "model.safetensors", "checkpoints/qat.pt"):
        first.write(name, f"first {name}")
    first.state("finished")
    first.close()
    before = tree(tmp_path / "run")
    second = RunDir(tmp_path / "run", "m", "d", 0)
    second.write("recipe.yaml", "second")
    assert tree(tmp_path / "run" / "previous" / "1") == before
    second.fail("it went wrong")
    assert tree(tmp_path / "run") == before


def test_numbers_of_earlier_runs_are_never_used_twice(tmp_path: Path) -> None:
    """Number 1 was removed by hand; number 2 must stay as it is, also when the third fails."""
    run = tmp_path / "run"
    for text in ("first", "second", "third"):
        where = RunDir(run, "m", "d", 0)
        where.write("report.json", text)
        where.state("finished")
        where.close()
    for path in (run / "previous" / "1").iterdir():
        path.unlink()
    (run / "previous" / "1").rmdir()
    before = tree(run)
    where = RunDir(run, "m", "d", 0)
    assert (run / "previous" / "3" / "report.json").read_text() == "third"
    assert (run / "previous" / "2" / "report.json").read_text() == "second"
    where.fail("it went wrong")
    assert tree(run) == before


@pytest.mark.parametrize("need", [0, 2**60])
def test_files_of_the_same_names_that_are_no_run_survive_a_failure(tmp_path: Path, need: int) -> None:
    for name in ("recipe.yaml", "events.jsonl", "state.json", "report.json"):
        (tmp_path / name).write_text(f"mine {name}")
    before = tree(tmp_path)
    if need:
        with pytest.raises(EngineError, match="MB free"):
            RunDir(tmp_path, "m", "d", need)
    else:
        where = RunDir(tmp_path, "m", "d", need)
        where.write("recipe.yaml", "other")
        where.fail("no")
    assert tree(tmp_path) == before


def test_only_folders_that_the_run_made_go_with_it(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    where = RunDir(tmp_path / "a" / "b" / "c", "m", "d", 0)
    (tmp_path / "a" / "b" / "other").write_text("somebody else's")
    where.fail("no")
    assert tree(tmp_path) == {"a": None, "a/b": None, "a/b/other": b"somebody else's"}


def test_events_are_strict_json_without_ticks(tmp_path: Path) -> None:
    where = RunDir(tmp_path / "run", "m", "d", 0)
    where.event(Measured("ptq", {"sqnr_db": float("inf"), "list": [float("nan"), 1.5], "pair": (1, 2)}))
    where.event(Progress("x", 1, 2, "img"))
    where.event(Notice("line\nbreak é"))
    where.close()
    lines = (tmp_path / "run" / "events.jsonl").read_text(encoding="utf-8").splitlines()
    figures = {"sqnr_db": None, "list": [None, 1.5], "pair": [1, 2]}
    assert json.loads(lines[0]) == {"event": "Measured", "which": "ptq", "figures": figures, "metrics": {}}
    assert [json.loads(line)["event"] for line in lines] == ["Measured", "Notice"]
    assert json.loads(lines[1])["text"] == "line\nbreak é"


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "new" / "file.bin"
    write_atomic(path, b"old")
    assert path.read_bytes() == b"old" and path.stat().st_mode & 0o777 == 0o644
    for name in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(os, name, lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
            with pytest.raises(OSError, match="No space"):
                write_atomic(path, b"new")
        assert tree(tmp_path) == {"new": None, "new/file.bin": b"old"}


# Reports.

REPORT = {key: {} for key in ("data", "environment", "graph", "baseline", "ptq")} | {
    "schema": 1, "model": "m", "layers": [], "qat": None, "exports": [], "verdict": {"met": True, "text": ""},
}  # fmt: skip


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "has not finished"),
        ("{", "is not JSON"), ("", "is not JSON"), ("\0", "is not JSON"), ("[]", "schema 1"), ("null", "schema 1"),
        ("{}", "schema 1"), ('{"schema": 2}', "schema 1"), ('{"schema": 1}', "lacks model"),
    ],
)  # fmt: skip
def test_a_report_that_cannot_be_read(tmp_path: Path, content: str | None, says: str) -> None:
    if content is not None:
        (tmp_path / "report.json").write_text(content)
    with pytest.raises(EngineError, match=says) as caught:
        Report.load(tmp_path)
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("key", sorted(set(REPORT) - {"schema"}))
def test_a_report_that_lacks_a_part(tmp_path: Path, key: str) -> None:
    (tmp_path / "report.json").write_text(json.dumps({k: v for k, v in REPORT.items() if k != key}))
    with pytest.raises(EngineError, match=f"lacks {key}"):
        Report.load(tmp_path)


def test_a_report_comes_back_as_it_was_written(tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text(Report(REPORT).to_json())
    assert Report.load(tmp_path).data == REPORT and Report.load(tmp_path).met


def test_figures_that_are_not_finite_become_null() -> None:
    text = Report({"a": float("inf"), "b": [float("nan"), {"c": -float("inf")}], "d": (1.5, "é")}).to_json()
    assert json.loads(text) == {"a": None, "b": [None, {"c": None}], "d": [1.5, "é"]} and "é" in text
