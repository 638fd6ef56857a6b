"""Bytes to typed text, without a terminal."""

from __future__ import annotations

import pytest

from qtui.typed import Typed


def fed(*reads: bytes, quiet: float = 0.02) -> str:
    """What comes out of these reads and a pause."""
    typed = Typed()
    return "".join([*map(typed.feed, reads), typed.idle(quiet)])


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"abc\r", "abc\r"),
        (b"\x1b[A\x1bOP\x1b[1;5C", "\x1b[A\x1bOP\x1b[1;5C"),
        (b"\x1b[<35;4;5M\x1b[?2026;2$y\x1b[I", "\x1b[<35;4;5M\x1b[?2026;2$y\x1b[I"),
        ("é€".encode(), "é€"),
        (b"\x1b", "\x1b"),
        (b"\x1b[", "\x1b["),
        (b"a\x1b[M\xe0\xa1\xb2b", "ab"),
        (b"\x1b[M\xe0\xa1\x1b[A", "\x1b[A"),
        (b"\xe9\x9b", ""),
        (b"\x1b[200~a\x1b[A\tb\x1b[201~c", "\x1b[200~a[A\tb\x1b[201~c"),
    ],
)
def test_it_is_the_same_wherever_a_read_ends(data: bytes, text: str) -> None:
    assert fed(data) == text
    for cut in range(1, len(data)):
        assert fed(data[:cut], data[cut:]) == text, f"{data[:cut]!r} {data[cut:]!r}"


def test_noise_ends_with_a_pause() -> None:
    typed = Typed()
    assert typed.feed(bytes(range(256))) == ""
    assert typed.waiting and typed.feed(b"q") == ""
    typed.idle(0.02)
    assert typed.feed(b"q") == "q"


def test_many_keys_at_once_are_no_noise() -> None:
    assert fed(b"j" * 500) == "j" * 500
    assert fed(b"\x1b[B" * 500) == "\x1b[B" * 500


def test_half_a_sequence_is_forgotten() -> None:
    assert fed(b"\x1b[<35;4", quiet=0.6) == ""
    typed = Typed()
    typed.feed(b"\xe2\x82")
    typed.idle(0.6)
    assert typed.feed(b"q") == "q"
