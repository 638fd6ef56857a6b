"""How a command ends: exit codes, and what goes where."""

from __future__ import annotations

import errno
import io
import json
import sys
from collections.abc import Generator
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import scripted

from engine.errors import EngineError, UsageError
from engine.events import event as ev
from qtui.__main__ import main

ESCAPE = "\x1b"


@pytest.fixture(autouse=True)
def _the_engine_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """What ``scripted.install`` replaces is put back."""
    for name in scripted.REPLACED:
        room, _, module = name.rpartition(".")
        monkeypatch.setitem(sys.modules, name, sys.modules.get(name, ModuleType(name)))
        monkeypatch.setattr(import_module(room), module, None, raising=False)
    monkeypatch.setattr("sys.stdin", io.StringIO(""))


def failing(error: BaseException) -> Any:
    def start(calls: list[Any], **_: Any) -> Generator[ev.Event, Any, None]:
        yield ev.StageStarted("load", "loading")
        raise error

    return start


def test_met_and_missed(capsys: pytest.CaptureFixture[str]) -> None:
    scripted.install()
    assert main(["run", "simplecnn"]) == 0
    scripted.install(met=False)
    assert main(["run", "simplecnn"]) == 3
    assert "drop:0.005 is not met\nruns/one\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("error", "code"),
    [(EngineError("no\nweights\x1b[2J"), 1), (UsageError("no\nweights\x1b[2J"), 2), (KeyboardInterrupt(), 130)],
)
def test_failures(error: BaseException, code: int, capsys: pytest.CaptureFixture[str]) -> None:
    scripted.install(failing(error))
    assert main(["run", "simplecnn"]) == code
    assert capsys.readouterr().err == ("" if code == 130 else "error: no weights?[2J\n")


def test_a_stopped_run_tells_how_to_go_on(capsys: pytest.CaptureFixture[str]) -> None:
    def start(calls: list[Any], stop: Any) -> Generator[ev.Event, Any, None]:
        stop.set()
        yield from scripted.script(calls, stop=stop)

    scripted.install(start)
    assert main(["run", "simplecnn"]) == 130
    assert "stopped during calibrate; go on with: qtui resume runs/one" in capsys.readouterr().out


def test_an_operating_system_error_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    scripted.install(failing(PermissionError(13, "Permission denied", "/x")))
    assert main(["run", "simplecnn"]) == 1
    assert capsys.readouterr().err == "error: /x: Permission denied\n"


def test_a_full_output_is_told_with_the_next_step(capsys: pytest.CaptureFixture[str]) -> None:
    scripted.install(failing(OSError(errno.ENOSPC, "No space left on device")))
    assert main(["run", "simplecnn"]) == 1
    assert capsys.readouterr().err == "error: the output cannot be written (No space left on device): make room, or send it elsewhere\n"


def test_no_command_shows_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert capsys.readouterr().out.startswith("usage: qtui")


def test_json_has_stdout_to_itself(capsys: pytest.CaptureFixture[str]) -> None:
    scripted.install(met=False)
    assert main(["run", "simplecnn", "--json", "--yes"]) == 3
    out, err = capsys.readouterr()
    assert json.loads(out) == {"schema": 1, "model": "simplecnn"}
    assert "trace? [Y/n] yes" in err and "accuracy 97.22 %" in err


def test_piped_output_is_plain(capsys: pytest.CaptureFixture[str]) -> None:
    scripted.install(met=False)
    main(["run", "simplecnn"])
    out, err = capsys.readouterr()
    assert ESCAPE not in out + err and "\r" not in out + err
    assert out.count("512 img, 432 img/s, 1.2 s") == 1 and "256/512" not in out
    assert "warning: rule [bold]layer9.*[/bold] matches nothing" in out
    assert max(len(line) for line in out.splitlines() if "SQNR 33.2" not in line) <= 80
    assert "dB  agreement 99.72 %  0.38 MB  p50 0.37 ms  onednn.qconv_pointwise\n" in out, "one line, for grep"


def test_run_passes_recipe_and_folder() -> None:
    calls = scripted.install()
    main(["run", "simplecnn", "--out", "here", "--seed", "5"])
    _, recipe, out = calls[0]
    assert (recipe.model, recipe.seed, out) == ("simplecnn", 5, Path("here"))
    main(["run", "simplecnn"])
    assert [call for call in calls if isinstance(call, tuple)][1][2] is None


def test_train_passes_the_command_as_typed(capsys: pytest.CaptureFixture[str]) -> None:
    calls = scripted.install()
    assert main(["train", "simplecnn", "--data", "my photos", "--seed", "3"]) == 0
    _, model, data, asked = calls[0]
    assert (model, data, asked["seed"], asked["epochs"], asked["out"], asked["device"]) == ("simplecnn", "my photos", 3, None, None, "auto")
    assert asked["command"] == "uv run qtui train simplecnn --data 'my photos' --seed 3"
    assert "weights written to weights.safetensors" in capsys.readouterr().out


def test_resume_and_show(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    calls = scripted.install()
    assert main(["resume", str(tmp_path), "--yes"]) == 0
    assert calls[0] == ("resume", tmp_path) and calls[1:] == [True] * 4
    assert main(["show", str(tmp_path)]) == 1
    assert main(["show", str(tmp_path / "none")]) == 2
    (tmp_path / "report.json").touch()
    capsys.readouterr()
    assert main(["show", str(tmp_path)]) == 0
    assert capsys.readouterr().out == "# a report\n"
    assert main(["show", str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["schema"] == 1


def test_a_reader_that_has_gone_stops_the_run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError(32, "Broken pipe")

    calls = scripted.install()
    monkeypatch.setattr("sys.stdout", Gone())
    assert main(["run", "simplecnn"]) == 130
    assert calls[1:] == [None] * 4, "questions nobody can see are not answered"
    assert main(["models"]) == 141
    assert capsys.readouterr().err == ""
