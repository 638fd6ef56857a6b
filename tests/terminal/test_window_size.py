"""The app has the window's size, whatever stands between the two."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from pty_terminal import PtyTerminal, python


def no_signal() -> None:
    """As a program's parent may leave it: no change of the window is told."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGWINCH})


@pytest.mark.parametrize(
    ("env", "before"), [({"COLUMNS": "80", "LINES": "24"}, None), ({}, no_signal)], ids=["sizes in the environment", "no signal"]
)
def test_a_window_that_changes_is_followed(tmp_path: Path, env: dict[str, str], before: object) -> None:
    own = {"QTUI_RUNS": str(tmp_path / "runs"), "QTUI_CACHE": str(tmp_path / "cache"), **env}
    with PtyTerminal(python("-m", "qtui"), (80, 24), own, before=before) as terminal:  # type: ignore[arg-type]
        terminal.wait_for("simplecnn")
        terminal.resize(20, 5)
        terminal.wait_for("small")
        terminal.resize(100, 30)
        terminal.wait_for(lambda t: len(t.lines[0]) > 80 and "simplecnn" in t.text)
        terminal.press("q")
        assert terminal.exit_code() == 0
