"""Bytes that are no keys, through a real pseudo-terminal: the app goes on, and nothing of them is typed."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from pty_terminal import PtyTerminal

Start = Callable[..., PtyTerminal]
NOISE = random.Random(5).randbytes(1_000_000)

SILENT = {
    "x10 report": b"\x1b[M\xe0\xa1\xb2",
    "x10 report of letters": b"\x1b[Mqqq",
    "x10 reports in a row": b"\x1b[M\xe0\xa1\xb2\x1b[M !!\x1b[M\xff\xff\xff" * 300,
    "x10 report beyond column 223": b"\x1b[M \x00\x00",
    "garbage": b"\xff\xfe\x9b\x80",
    "half a character": b"\xe2\x82",
    "half a mouse report": b"\x1b[<35;4",
    "cut short by the next": b"\x1b[<35;4\x1b[<35;4;5M",
    "device attributes": b"\x1b[?62;1;4c\x1b[>41;380;0c",
    "colour report": b"\x1b]11;rgb:1e1e/1e1e/2e2e\x1b\\",
    "terminal version": b"\x1bP>|XTerm(380)\x1b\\",
    "binary": NOISE[:5000],
    "a megabyte of binary": NOISE,
}


@pytest.fixture
def terminal(counting: Start) -> PtyTerminal:
    return counting()


def ends_well(terminal: PtyTerminal, keys: int, pasted: int = 0) -> None:
    """Reacts to a key, has counted no other, and exits with 0."""
    terminal.press("x")
    terminal.wait_for(f"keys {keys + 1} pasted {pasted} ")
    terminal.press("q")
    assert terminal.exit_code() == 0
    assert "Traceback" not in terminal.text


def test_they_type_nothing(terminal: PtyTerminal) -> None:
    for count, (name, data) in enumerate(SILENT.items(), 1):
        terminal.write(data)
        terminal.drain(0.6)
        terminal.press("x")
        try:
            terminal.wait_for(f"keys {count} pasted 0 ", 5)
        except TimeoutError as error:
            pytest.fail(f"{name}: {error}")
    ends_well(terminal, keys=len(SILENT))


def test_a_report_in_pieces_types_nothing(terminal: PtyTerminal) -> None:
    for piece in (b"\x1b[M", b"\xe0", b"q", b"q"):
        terminal.write(piece)
        terminal.drain(0.05)
    ends_well(terminal, keys=0)


def test_keys_beside_a_report_are_kept(terminal: PtyTerminal) -> None:
    terminal.write(b"a\x1b[M\xe0\xa1\xb2b")
    terminal.write("é€".encode())
    terminal.write(b"\x1b[A")
    terminal.wait_for("keys 5")
    terminal.wait_for("up")


def test_escape_alone_is_a_key(terminal: PtyTerminal) -> None:
    terminal.press("esc")
    terminal.wait_for("escape", 1)
    ends_well(terminal, keys=1)


def test_a_sequence_the_parser_fails_on_costs_nothing_else(terminal: PtyTerminal) -> None:
    terminal.write(b"\x1b[99999999999999999u")
    terminal.drain(0.3)
    ends_well(terminal, keys=0)


def test_a_paste_is_a_paste_whatever_it_holds(terminal: PtyTerminal) -> None:
    terminal.write(b"\x1b[200~" + b"ab\x1b[Aq\xff\x00\x1b[M123" + b"\x1b[201~")
    ends_well(terminal, keys=0, pasted=len("ab[Aq[M123"))


def test_a_megabyte_of_binary_pasted_is_cut(terminal: PtyTerminal) -> None:
    terminal.write(b"\x1b[200~" + NOISE.replace(b"\x1b[201~", b"") + b"\x1b[201~")
    ends_well(terminal, keys=0, pasted=65536)


def test_a_paste_that_never_ends_does_not_take_the_keys_for_ever(terminal: PtyTerminal) -> None:
    terminal.write(b"\x1b[200~lost")
    terminal.wait_for("pasted 4 ", 5)
    ends_well(terminal, keys=0, pasted=4)
