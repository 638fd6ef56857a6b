"""Paths as they are typed or dropped into a terminal: quotes taken off, and the rest completed. Pure but for the look at a folder."""

from __future__ import annotations

import os
import re
from pathlib import Path
from urllib.parse import unquote, urlparse

_MOST = 2000


def unquoted(text: str) -> str:
    """A path without the quotes, escapes or the ``file://`` that a shell or a file manager put around it."""
    text = text.strip()
    if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"":
        return text[1:-1].replace("'\\''", "'")
    if text.startswith("file://"):
        return unquote(urlparse(text).path)
    return re.sub(r"\\([ '\"()&;\[\]])", r"\1", text) if re.search(r"\\[ '\"()&;\[\]]", text) else text


def completed(text: str) -> tuple[str, tuple[str, ...]]:
    """The text as far as all names that begin like it are the same, and those names where they are several."""
    folder, name = os.path.split(unquoted(text))
    try:
        with os.scandir(Path(folder or ".").expanduser()) as found:
            entries = [entry for entry, _ in zip(found, range(_MOST), strict=False)]
            names = sorted(
                f"{entry.name}/" if entry.is_dir() else entry.name
                for entry in entries
                if entry.name.startswith(name) and (name.startswith(".") or not entry.name.startswith("."))
            )
    except (OSError, ValueError):
        return text, ()
    if not names:
        return text, ()
    # All that names have in common lies between the first and the last of them.
    first, last = names[0], names[-1]
    alike = next((place for place, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last)))
    whole = os.path.join(folder, first[:alike])
    return whole, tuple(names) if len(names) > 1 else ()
