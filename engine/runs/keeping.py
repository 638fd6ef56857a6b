"""Deleting and renaming what past runs left behind."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

from engine.errors import EngineError, UsageError
from engine.paths import unwritable
from engine.runs.rundir import is_run, is_running

# What every file system takes, and no shell reads otherwise.
_NAME = re.compile(r"[\w][\w.+-]{0,119}")


def wrong_name(name: str, directory: Path) -> str | None:
    """What is wrong with ``name`` for the folder of the run in ``directory``; None where it can have it."""
    if not _NAME.fullmatch(name):
        return "Letters, digits and - _ . + alone, 120 at most, a letter or digit first"
    if name != directory.name and os.path.lexists(directory.with_name(name)):
        return f"{name} is there already"
    return None


def rename(directory: Path, name: str) -> Path:
    """Give a run's folder another name beside its siblings, and return it. Raises UsageError for a folder that is no run's, that a run
    is at work in, or a name that cannot be; EngineError where the system refuses."""
    _check(directory, "renamed")
    if wrong := wrong_name(name, directory):
        raise UsageError(f"{directory} cannot be renamed to {name!r}: {wrong}")
    place = directory.with_name(name)
    try:
        directory.rename(place)
    except OSError as error:
        raise unwritable(place, error) from error
    return place


def delete(directory: Path) -> None:
    """Delete a run's folder with all that is in it. Raises as ``rename`` does; what could be deleted is then gone."""
    _check(directory, "deleted")
    try:
        shutil.rmtree(directory)
    except OSError as error:
        raise EngineError(f"{directory} cannot be deleted ({error.strerror or error}): look at {error.filename or directory}") from error


def _check(directory: Path, what: str) -> None:
    if directory.is_symlink() or not is_run(directory):
        raise UsageError(f"{directory} is no folder of a run: it is not {what}")
    if is_running(directory):
        raise UsageError(f"the run in {directory} is at work: stop it before it is {what}")
