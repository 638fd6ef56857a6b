"""What the environment says about the terminal."""

from __future__ import annotations

import base64
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from qtui import terminal

SSH = {"SSH_CONNECTION": "10.0.0.2 50000 10.0.0.1 22"}


def test_a_connection_is_told_by_what_the_server_sets() -> None:
    assert terminal.over_ssh(SSH) and terminal.over_ssh({"SSH_TTY": "/dev/pts/0"})
    assert not terminal.over_ssh({}) and not terminal.over_ssh({"SSH_CONNECTION": ""})


@pytest.mark.parametrize("name", ["TMUX", "STY", "ZELLIJ"])
def test_a_multiplexer_keeps_a_run(name: str) -> None:
    assert terminal.inside_multiplexer({name: "0"})
    assert terminal.connection_hint(SSH | {name: "0"}) is None


def test_the_hint_is_for_a_bare_connection() -> None:
    assert terminal.connection_hint({}) is None
    assert "tmux" in (terminal.connection_hint(SSH | {"TERM": "tmux-256color"}) or "")


@pytest.mark.parametrize(
    ("env", "rate"),
    [
        ({}, 8), (SSH, 4), (SSH | {"QTUI_HZ": "10"}, 10), ({"QTUI_HZ": "0"}, 1), ({"QTUI_HZ": "1e9"}, 30), ({"QTUI_HZ": "no"}, 8),
        ({"QTUI_HZ": "nan"}, 8),
    ],
)  # fmt: skip
def test_the_rate(env: dict[str, str], rate: float) -> None:
    assert terminal.refresh_rate(env) == rate


@pytest.mark.parametrize(
    ("env", "found"),
    [
        ({"TERM": "xterm"}, "16"),
        ({}, "16"),
        ({"TERM": "linux"}, "16"),
        ({"TERM": "xterm-256color"}, "256"),
        ({"TERM": "xterm-kitty"}, "256"),
        ({"TERM": "tmux-256color", "COLORTERM": "truecolor"}, "truecolor"),
    ],
)
def test_the_colours_are_what_textual_writes(env: dict[str, str], found: str) -> None:
    assert terminal.depth(env) == found
    code = "from textual.app import App; print({'standard': '16'}.get(found := App().console.color_system, found))"
    told = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert told.stdout.strip() == found


def test_greys_are_asked_for_by_no_color() -> None:
    assert terminal.no_colour({"NO_COLOR": "1"}) and terminal.no_colour({"NO_COLOR": ""}) and not terminal.no_colour({})


def test_the_mouse_stays_at_home() -> None:
    assert terminal.wants_mouse({}) and not terminal.wants_mouse(SSH)
    assert terminal.wants_mouse(SSH | {"QTUI_MOUSE": "1"}) and not terminal.wants_mouse({"QTUI_MOUSE": "0"})


def decoded(sequence: str) -> str:
    return base64.b64decode(sequence.removeprefix("\x1b]52;c;").removesuffix("\x07")).decode()


def test_the_clipboard_is_asked_in_the_words_each_terminal_knows() -> None:
    text = "98.6 % – " * 40
    (plain,) = terminal.clipboard_sequences(text, {"TERM": "xterm-256color"})
    assert decoded(plain) == text
    both = terminal.clipboard_sequences(text, {"TMUX": "x", "TERM": "screen-256color"})
    assert both == [plain, "\x1bPtmux;\x1b" + plain + "\x1b\\"]
    assert terminal.clipboard_sequences(text, {"TERM": "tmux-256color"}) == both
    (wrapped,) = terminal.clipboard_sequences(text, {"TERM": "screen"})
    pieces = wrapped.removeprefix("\x1bP").removesuffix("\x1b\\").split("\x1b\\\x1bP")
    assert "".join(pieces) == plain and max(map(len, pieces)) <= 250


def test_copying_too_much_still_writes_the_file(tmp_path: Path) -> None:
    written: list[str] = []
    path = terminal.copy(written.append, "x" * 80_000, {}, tmp_path / "new")
    assert written == [] and path is not None and len(path.read_text()) == 80_000


def test_copying_survives_a_folder_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    written: list[str] = []
    assert terminal.copy(written.append, "x", {"TMUX": "gone,1,0", "PATH": ""}, tmp_path / "file") is None
    assert len(written) == 2


def test_a_textual_that_changed_gives_its_own_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module("qtui.driver")
    assert terminal.driver_class() is module.QtuiDriver
    monkeypatch.delattr(module.LinuxDriver, "run_input_thread")
    assert terminal.driver_class() is None
    monkeypatch.setitem(sys.modules, "qtui.driver", None)
    monkeypatch.delattr("qtui.driver", raising=False)
    assert terminal.driver_class() is None


def test_looking_loads_no_textual() -> None:
    code = "import sys, qtui.terminal; sys.exit('textual' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
