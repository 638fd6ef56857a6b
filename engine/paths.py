"""Where things are kept, and how a file is written whole or not at all."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from engine.errors import EngineError


def cache_dir() -> Path:
    """``QTUI_CACHE``, or ``qtui`` in the user's cache folder."""
    given = os.environ.get("QTUI_CACHE")
    return Path(given) if given else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "qtui"


def matching(folder: Path, start: str, end: str) -> list[Path]:
    """The files of ``folder`` with that start and end of their names, in order; none where there is no folder."""
    # A glob compiles its pattern: with a pattern for each model that is most of the first frame's time.
    try:
        names = os.listdir(folder)
    except OSError:
        return []
    return [folder / name for name in sorted(names) if name.startswith(start) and name.endswith(end)]


def save(path: Path, content: bytes) -> None:
    """``write_atomic`` for a person: raises EngineError in one line."""
    try:
        write_atomic(path, content)
    except OSError as error:
        raise unwritable(path, error) from error


def unwritable(path: Path, error: OSError) -> EngineError:
    return EngineError(f"{path} cannot be written ({error.strerror or error}): free some space or give --out elsewhere")


def check_writable(path: Path) -> None:
    """Raises EngineError now rather than after hours of work. Leaves nothing behind."""
    made = [place for place in path.parents if not place.exists()]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path.parent).close()
    except OSError as error:
        raise unwritable(path, error) from error
    finally:
        for place in made:
            with contextlib.suppress(OSError):
                place.rmdir()


def write_atomic(path: Path, content: bytes) -> None:
    """Write ``path`` through a temporary sibling: a reader sees the old file or the new one, never a part.

    Raises OSError, and leaves nothing behind, when the disk is full or the folder cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    fill_atomic(path, lambda file: file.write(content))


def fill_atomic(path: Path, fill: Callable[[BinaryIO], object]) -> None:
    """The same of what ``fill`` writes into the open file, piece by piece; the folder is there."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            fill(file)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
