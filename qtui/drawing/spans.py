"""A drawn line is a list of spans: text and the role it plays; a theme gives roles their colours."""

from __future__ import annotations

from collections.abc import Iterable

from qtui.drawing.text import cells

Span = tuple[str, str]
"""Text and its role: ``("┈┈┈", "base")``; the empty role is ordinary text."""

Line = list[Span]


def merged(spans: Iterable[Span]) -> Line:
    """The same text with neighbours of one role joined and empty spans left out."""
    line: Line = []
    for text, role in spans:
        if not text:
            continue
        if line and line[-1][1] == role:
            line[-1] = (line[-1][0] + text, role)
        else:
            line.append((text, role))
    return line


def plain(line: Iterable[Span]) -> str:
    """The text of a line without its roles."""
    return "".join(text for text, _ in line)


def difference(old: Line, new: Line) -> tuple[int, int] | None:
    """The range of cells ``(start, end)`` in which two lines of one width differ; None when they are equal."""
    if old == new:
        return None
    before, after = _atoms(old), _atoms(new)
    start = _common(before, after)
    longest = min(len(before), len(after)) - start
    end = min(_common(before[::-1], after[::-1]), longest)
    first = sum(cells(text) for text, _ in before[:start])
    kept = sum(cells(text) for text, _ in before[len(before) - end :])
    width = max(sum(cells(text) for text, _ in atoms) for atoms in (before, after))
    return first, max(width - kept, first)


def _atoms(line: Line) -> list[Span]:
    # A mark that combines with the letter before it stays with that letter.
    atoms: list[Span] = []
    for text, role in line:
        for char in text:
            if atoms and not cells(char):
                atoms[-1] = (atoms[-1][0] + char, atoms[-1][1])
            else:
                atoms.append((char, role))
    return atoms


def _common(a: list[Span], b: list[Span]) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
