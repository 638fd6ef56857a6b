"""Tables of the benches between the marks of a file."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

Marks = tuple[str, str]


def check_place(place: Path | None, marks: Marks) -> None:
    """Ends the program, before it measures, where the file that a table is to be put into has no place for it."""
    if place is not None and not (place.is_file() and all(mark in place.read_text() for mark in marks)):
        sys.exit(f"{place} has no place for the table: put {marks[0]} and {marks[1]} into it")


def put(text: str, place: Path | None, marks: Marks) -> None:
    """Put ``text`` between the marks of ``place``; without one there is nothing to do."""
    if place is not None:
        begin, end = marks
        before, rest = place.read_text().split(begin)
        place.write_text(f"{before}{begin}\n{text}\n{end}{rest.split(end)[1]}")


def printed(lines: Iterable[str], place: Path | None, marks: Marks) -> None:
    """Print the lines of a table as they come, and ``put`` them into ``place``."""
    shown = []
    for line in lines:
        print(line, flush=True)
        shown.append(line)
    put("\n".join(shown), place, marks)
