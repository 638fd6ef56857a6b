"""Fixtures of the terminal tests, and the way to the measuring library."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(HERE), str(ROOT / "tests" / "bench")]

from pty_terminal import PtyTerminal, python  # noqa: E402
from tmux_terminal import AVAILABLE, Tmux  # noqa: E402


@pytest.fixture
def counting() -> Iterator[Callable[..., PtyTerminal]]:
    """Starts the small app in a pseudo-terminal and waits for its first screen."""
    opened: list[PtyTerminal] = []

    def start(*arguments: object, **options: object) -> PtyTerminal:
        terminal = PtyTerminal(python(HERE / "counting_app.py", *map(str, arguments)), cwd=ROOT, **options)  # type: ignore[arg-type]
        opened.append(terminal)
        terminal.wait_for("keys 0")
        terminal.quiet(0.1, 1)
        return terminal

    yield start
    for terminal in opened:
        terminal.__exit__(None, None, None)


@pytest.fixture
def tmux() -> Iterator[Callable[..., Tmux]]:
    """Starts a command in tmux: ``tmux(command, size=(80, 24), env=None, cwd=None)``; the server is killed at the end."""
    if not AVAILABLE:
        pytest.skip("tmux is not installed")
    opened: list[Tmux] = []

    def start(command: list[str], **options: object) -> Tmux:
        opened.append(Tmux(command, **{"cwd": ROOT, **options}))  # type: ignore[arg-type]
        return opened[-1]

    yield start
    for pane in opened:
        pane.__exit__(None, None, None)
