"""One run, one owner: while a process works in a run's folder, no other begins to."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Generator
from pathlib import Path
from typing import TypeVar

from engine.errors import UsageError
from engine.events.event import Event
from engine.recipe.decisions import Answer

Result = TypeVar("Result")
_TAKEN = (errno.EWOULDBLOCK, errno.EACCES)


def owned(directory: Path | None, steps: Generator[Event, Answer, Result]) -> Generator[Event, Answer, Result]:
    """``steps`` with the folder held from the first to the last; the kernel lets go of it when the process dies. UsageError where
    another holds it. Without a folder, or with one that is not there yet, there is nothing to hold."""
    descriptor = _take(directory) if directory is not None and directory.is_dir() else -1
    try:
        return (yield from steps)
    finally:
        if descriptor >= 0:
            os.close(descriptor)


def _take(directory: Path) -> int:
    # The folder itself: files in it are replaced while a run works, and a lock on one would go with it.
    try:
        descriptor = os.open(directory, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return -1
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        if error.errno in _TAKEN:
            raise UsageError(f"{directory} is at work in another process: wait for it, or stop it there") from error
        # A file system without such locks.
        return -1
    return descriptor
