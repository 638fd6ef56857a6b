"""Text from outside (names in files, messages of other programs) made safe to show: the one place that decides what may
reach a terminal. Torch-free."""

from __future__ import annotations

import re

# Printable by Unicode's categories, and yet invisible: fillers, joiners, and selectors of a glyph's variant.
_BLANK = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u3164\uffa0")
_SELECTORS = re.compile("[\ufe00-\ufe0f\u180b-\u180d\U000e0100-\U000e01ef]")
_ASCII = re.compile(r"[\t\n -~]*")
_UNPRINTABLE = re.compile(r"[^\n -~]")


def plain(text: object, instead: str = "?") -> str:
    """``text`` with line breaks and tabs, and with ``instead`` for every other character that could steer a terminal or that
    nobody sees: controls, bidirectional overrides, zero-width and private characters, halves of surrogate pairs. Spaces of any
    width become plain ones, and selectors of a glyph's variant are left out."""
    given = str(text)
    if _ASCII.fullmatch(given):
        return given
    return "".join(_shown(c, instead) for c in _SELECTORS.sub("", given))


def one_line(text: object, limit: int | None = None) -> str:
    """``plain`` on one line of at most ``limit`` characters."""
    return " ".join(plain(text).split())[:limit]


def escaped_json(text: str) -> str:
    """JSON ``text`` with ``\\uXXXX`` for every character inside of strings that ``plain`` would not show: the same values."""
    return _UNPRINTABLE.sub(lambda found: found[0] if _shown(found[0], "") == found[0] else _escape(found[0]), text)


def _shown(c: str, instead: str) -> str:
    if c in "\n\t" or (c.isprintable() and c not in _BLANK):
        return c
    return " " if c.isspace() and c > "\x9f" and c not in "\u2028\u2029" else instead


def _escape(c: str) -> str:
    units = c.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[i]:02x}{units[i + 1]:02x}" for i in range(0, len(units), 2))
