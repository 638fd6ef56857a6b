"""The tmux fixture, with the small app; and what copying does in a tmux of default options."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from pty_terminal import python
from tmux_terminal import Tmux

HERE = Path(__file__).parent
Start = Callable[..., Tmux]


@pytest.fixture
def pane(tmux: Start) -> Tmux:
    pane = tmux(python(HERE / "counting_app.py"))
    pane.wait_for("keys 0")
    return pane


def test_it_types_looks_and_ends(pane: Tmux) -> None:
    pane.keys("Down", "C-a")
    assert "down ctrl+a" in pane.wait_for("keys 2")
    pane.type("ab")
    pane.wait_for("keys 4")
    assert "\x1b[" in pane.screen(styles=True)
    pane.keys("q")
    assert pane.exit_code() == 0


def test_it_resizes(pane: Tmux) -> None:
    assert all(len(line) <= 80 for line in pane.screen().splitlines())
    pane.resize(40, 12)
    pane.keys("x")
    assert len(pane.wait_for("keys 1").splitlines()) <= 12


def test_mouse_reports_of_another_kind_type_nothing(pane: Tmux) -> None:
    pane.send_bytes(b"\x1b[M\xe0\xa1\xb2")
    pane.keys("x")
    pane.wait_for("keys 1 ")
    pane.keys("q")
    assert pane.exit_code() == 0


def test_a_killed_server_hangs_up(tmux: Start, tmp_path: Path) -> None:
    saved = tmp_path / "saved"
    pane = tmux(python(HERE / "counting_app.py", "--hangup", saved, "0"))
    pane.wait_for("keys 0")
    os.kill(pane.pid, signal.SIGHUP)
    assert pane.exit_code() == 0
    assert saved.read_text() == "1\n"


def test_copied_text_is_in_the_buffer_and_in_a_file(tmux: Start, tmp_path: Path) -> None:
    code = f"import os, sys; from pathlib import Path; from qtui.terminal import copy; print(copy(sys.stdout.write, 'é copied', os.environ, Path({str(tmp_path)!r})), flush=True); input()"  # noqa: E501
    pane = tmux(python("-c", code), size=(200, 10))
    # It waits for a key: tmux may lose what a program that ends at once has written.
    pane.wait_for(str(tmp_path))
    pane.keys("Enter")
    assert pane.exit_code() == 0
    assert pane.run("show-buffer") == "é copied"
    assert (tmp_path / "copied.txt").read_text(encoding="utf-8") == "é copied"
