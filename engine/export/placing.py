"""A format's files in a folder: all of them or none, and in the place of earlier ones only when they are whole."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from engine.errors import Cancelled, EngineError, one_line
from engine.export.registry import Format, install
from engine.paths import unwritable
from engine.reading import INDEX, shards_of_index

T = TypeVar("T")


def placed(entry: Format, folder: Path, fill: Callable[[Path], T]) -> T:
    """Put the files of ``entry`` into ``folder`` and return what ``fill`` does, which makes them at the path that it is given, and
    beside it. Raises EngineError, in one line, where a package is missing and where they cannot be made or kept: what was there
    stays. Cancelled passes, and leaves as little."""
    if missing := entry.missing(entry.writes):
        raise EngineError(f"{entry.name} needs {' and '.join(missing)}: {install(missing)}, then export again")
    try:
        hidden = Path(tempfile.mkdtemp(dir=folder, prefix=f".{entry.name}."))
    except OSError as error:
        raise unwritable(folder / entry.files[0], error) from error
    try:
        said = fill(hidden / entry.files[0])
        made = [name for name in (*entry.files, *entry.optional) if (hidden / name).exists() or name in entry.files]
        # The file that is loaded comes last: it names the others.
        for name in reversed(made):
            (hidden / name).chmod(0o755 if (hidden / name).is_dir() else 0o644)
            _replace(hidden / name, folder / name, hidden)
        for name in entry.optional:
            if name not in made:
                (folder / name).unlink(missing_ok=True)
        return said
    except (EngineError, Cancelled):
        raise
    except OSError as error:
        raise unwritable(folder / entry.files[0], error) from error
    except Exception as error:
        raise EngineError(f"{entry.name} cannot be written ({type(error).__name__}: {one_line(error, 160)})") from error
    finally:
        with contextlib.suppress(OSError):
            shutil.rmtree(hidden)


def _replace(new: Path, place: Path, hidden: Path) -> None:
    """``new`` in the place of what is there; a folder is moved aside first, and back where that fails."""
    if not place.is_dir():
        os.replace(new, place)
        return
    old = hidden / f".{place.name}.before"
    os.replace(place, old)
    try:
        os.replace(new, place)
    except OSError:
        os.replace(old, place)
        raise


def in_place(entry: Format, folder: Path) -> Format:
    """``entry`` with the files that it has in ``folder``: an index and its shards where the one file is not there."""
    index = folder / INDEX
    if entry.files != ("model.safetensors",) or (folder / entry.files[0]).exists() or not index.is_file():
        return entry
    try:
        return replace(entry, files=(INDEX, *(path.name for path in shards_of_index(index))))
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise EngineError(f"{index} is damaged: run it again") from error


def size_of(entry: Format, folder: Path) -> int:
    """Bytes of the format's files in ``folder``."""
    places = [folder / name for name in (*entry.files, *entry.optional)]
    files = [path for place in places for path in (place.rglob("*") if place.is_dir() else [place])]
    return sum(path.stat().st_size for path in files if path.is_file())


def in_a_child(code: str, *arguments: str, seconds: float = 600) -> None:
    """Run Python ``code`` in a process of its own, for writers that may end the one that they are in. Raises EngineError with its
    last words where it fails or crashes; it is in a session of its own, so that a Ctrl-C that is meant for the run does not stop it."""
    command = [sys.executable, "-c", code, *arguments]
    try:
        done = subprocess.run(command, capture_output=True, timeout=seconds, check=False, start_new_session=True)
    except (OSError, subprocess.SubprocessError) as error:
        raise EngineError(f"no process of its own could be used: {one_line(error, 160)}") from error
    if done.returncode == 0:
        return
    words = [line.strip() for line in done.stderr.decode(errors="replace").splitlines() if line.strip()]
    raise EngineError(one_line(Exception(words[-1] if words else f"exit code {done.returncode}"), 160))
