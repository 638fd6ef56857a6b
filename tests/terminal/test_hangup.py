"""A lost connection and ``kill``: the work is saved, the process is gone, nothing spins."""

from __future__ import annotations

import re
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from pty_terminal import PtyTerminal

Start = Callable[..., PtyTerminal]


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    return tmp_path / "saved"


def test_closing_the_terminal_saves_and_ends(counting: Start, saved: Path) -> None:
    terminal = counting("--flood", "--hangup", saved, 1.5)
    before = terminal.cpu_seconds()
    terminal.close()
    time.sleep(1.2)
    assert terminal.cpu_seconds() - before < 0.6, "it spins without its terminal"
    assert terminal.exit_code(4) == 0
    assert saved.read_text() == f"{int(signal.SIGHUP)}\n"


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_ends(counting: Start, saved: Path, number: int) -> None:
    terminal = counting("--hangup", saved, 0.3)
    terminal.kill(number)
    time.sleep(0.1)
    terminal.kill(signal.SIGTERM)
    assert terminal.exit_code(4) == 0
    assert saved.read_text() == f"{int(number)}\n"
    terminal.drain(0.1)
    after = terminal.received.rpartition(b"\x1b[?1049l")[2]
    assert re.sub(rb"\x1b\[[?<]?[0-9]*[a-z]", b"", after) == b"", "nothing is printed after the screen is given back"


def test_a_terminal_that_nobody_reads_does_not_hold_up_the_end(counting: Start, saved: Path) -> None:
    terminal = counting("--flood", "--hangup", saved, 0.2)
    time.sleep(3)
    terminal.kill(signal.SIGTERM)
    end = time.monotonic() + 8
    while terminal.process.poll() is None and time.monotonic() < end:
        time.sleep(0.05)
    assert terminal.process.poll() == 0
    assert saved.read_text() == f"{int(signal.SIGTERM)}\n"


def test_a_hangup_ignored_on_purpose_stays_ignored(counting: Start, saved: Path) -> None:
    terminal = counting("--hangup", saved, 0, before=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))
    terminal.kill(signal.SIGHUP)
    terminal.drain(0.3)
    terminal.press("x")
    terminal.wait_for("keys 1")
    before = terminal.cpu_seconds()
    terminal.close()
    time.sleep(1)
    assert terminal.process.poll() is None
    assert terminal.cpu_seconds() - before < 0.3, "it spins without its terminal"
    terminal.kill(signal.SIGTERM)
    assert terminal.exit_code(4) == 0
    assert saved.read_text() == f"{int(signal.SIGTERM)}\n"
