"""Runs are renamed and deleted; what is no run, or at work, is not touched."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from engine.errors import UsageError
from engine.runs.keeping import delete, rename, wrong_name
from engine.runs.rundir import list_runs


def write(place: Path, state: str = "finished", pid: int = 1) -> Path:
    place.mkdir(parents=True)
    about = {"state": state, "started": "2026-01-02T03:04:05", "model": "m", "data": "d", "pid": pid}
    (place / "state.json").write_text(json.dumps(about))
    (place / "report.json").write_text("{}")
    return place


def test_a_run_is_renamed_beside_its_siblings(tmp_path: Path) -> None:
    write(tmp_path / "b")
    assert rename(write(tmp_path / "a"), "best-w4.1") == tmp_path / "best-w4.1"
    assert sorted(run.directory.name for run in list_runs(tmp_path)) == ["b", "best-w4.1"]


@pytest.mark.parametrize("name", ["", "b", "../x", "a/b", ".hidden", "-x", "two words", "x" * 121, "a\nb", "\x1b[2J"])
def test_a_name_that_cannot_be_is_told(tmp_path: Path, name: str) -> None:
    place = write(tmp_path / "a")
    write(tmp_path / "b")
    assert wrong_name(name, place)
    with pytest.raises(UsageError, match="cannot be renamed"):
        rename(place, name)
    assert place.is_dir()


def test_a_run_is_deleted_whole_and_a_damaged_one_too(tmp_path: Path) -> None:
    place = write(tmp_path / "a")
    (place / "checkpoints").mkdir()
    (place / "checkpoints" / "qat.pt").write_text("x")
    damaged = write(tmp_path / "damaged")
    (damaged / "state.json").write_text("{")
    for one in (place, damaged):
        delete(one)
        assert not one.exists()


def test_what_is_no_run_or_at_work_stays(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "state.json").write_text("{}")
    link = tmp_path / "link"
    link.symlink_to(write(tmp_path / "a"))
    for place, said in (
        (folder, "no folder of a run"),
        (link, "no folder of a run"),
        (write(tmp_path / "b", "running", os.getpid()), "at work"),
    ):
        for change in (delete, lambda one: rename(one, "other")):
            with pytest.raises(UsageError, match=said):
                change(place)
        assert place.exists()
