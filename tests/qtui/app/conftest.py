"""The environment decides nothing here: no colours, theme or runs of the machine the tests run on."""

from __future__ import annotations

from pathlib import Path

import pytest

_OUT = (
    "NO_COLOR",
    "COLORTERM",
    "TEXTUAL_THEME",
    "QTUI_THEME",
    "QTUI_HZ",
    "SSH_CONNECTION",
    "SSH_TTY",
    "SSH_CLIENT",
    "TMUX",
    "STY",
    "TERM_PROGRAM",
)


@pytest.fixture(autouse=True)
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of runs of this test."""
    for name in _OUT:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLORTERM", "truecolor")
    monkeypatch.setenv("QTUI_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("QTUI_RUNS", str(tmp_path / "runs"))
    return tmp_path / "runs"
