"""What a key costs on the line: the cells that change are sent, and no frame to a terminal that has not taken the last one."""

from __future__ import annotations

import random
import statistics
from collections.abc import Iterator

import pytest
from pty_terminal import PtyTerminal
from the_app import LONG, Place
from tui import rests

KEY, VIEW = {(80, 24): 1000, (200, 60): 2000}, 8000
SLOW_LINE = 2000
"""Bytes a second."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    folder = tmp_path_factory.mktemp("painting")
    return Place(folder, folder / "cache")


@pytest.fixture
def resting(place: Place) -> Iterator[PtyTerminal]:
    with place.app() as terminal:
        terminal.wait_for(rests, LONG)
        terminal.quiet(0.5, 5)
        yield terminal


def cost(terminal: PtyTerminal, key: str) -> int:
    """The bytes that a key brings."""
    before = len(terminal.received)
    terminal.press(key)
    terminal.quiet(0.4, 3)
    return len(terminal.received) - before


@pytest.mark.parametrize("size", list(KEY))
def test_a_cursor_key_is_worth_a_line_or_two(place: Place, size: tuple[int, int]) -> None:
    with place.app(size) as terminal:
        terminal.wait_for(rests, LONG)
        terminal.quiet(0.5, 5)
        sizes = [cost(terminal, key) for key in ("down",) * 5 + ("up",) * 5]
        assert 0 < statistics.median(sizes) <= KEY[size]


def test_help_and_palette_are_worth_a_frame(resting: PtyTerminal) -> None:
    sizes = {key: cost(resting, key) for key in ("?", "esc", "ctrl+p")}
    assert all(0 < size <= VIEW for size in sizes.values()), sizes


@pytest.mark.slow
def test_what_was_sent_cell_by_cell_is_what_a_whole_frame_shows(resting: PtyTerminal) -> None:
    choose = random.Random(11)
    for _ in range(40):
        resting.press(choose.choice(("down", "up", "?", "esc", "T", "tab", "/", "x", "backspace", "L", "ctrl+p", "2", "j", "k")))
        resting.quiet(0.05, 0.3)
    resting.press("esc", "esc")
    resting.quiet(0.5, 3)
    width, height = resting.size
    shown = looks(resting)
    resting.resize(width, height - 1)
    resting.quiet(0.5, 3)
    resting.resize(width, height)
    resting.wait_for(lambda terminal: looks(terminal) == shown)


def looks(terminal: PtyTerminal) -> tuple[list[str], list[object]]:
    return terminal.lines, [terminal.row_style(row) for row in range(terminal.size[1])]


def test_a_window_that_was_another_for_a_moment_is_painted_again(resting: PtyTerminal) -> None:
    resting.quiet(0.5, 3)
    width, height = resting.size
    shown = looks(resting)
    for _ in range(3):
        resting.resize(width, height - 5)
        resting.resize(width, height)
    resting.wait_for(lambda terminal: looks(terminal) == shown)


@pytest.mark.slow
def test_a_slow_line_is_sent_what_is_shown_last_and_not_all_that_was(resting: PtyTerminal) -> None:
    fast = cost(resting, "?") + cost(resting, "esc")
    before, turns = len(resting.received), 12
    for _ in range(turns):
        for key in (b"?", b"\x1b"):
            resting.slowly(key, SLOW_LINE, 0.15)
    resting.slowly(b"", SLOW_LINE, 1.0)
    while resting.slowly(b"", SLOW_LINE, 1.0):
        pass
    assert len(resting.received) - before < turns * fast / 2
    assert "simplecnn" in resting.text and "╭─ help" not in resting.text
