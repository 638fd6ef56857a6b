"""Finished runs to export from, and what is in their folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import driving

from engine.events.cancellation import StopToken
from engine.runs import pipeline
from engine.runs import reexport as exporting


def run(recipe: Any, out: Path) -> driving.Outcome:
    with driving.untimed():
        stop = StopToken()
        return driving.consume(pipeline.run(recipe, out, stop), stop)


def again(directory: Path, *names: str, overwrite: bool = False, on_event: Any = None) -> driving.Outcome:
    with driving.untimed():
        stop = StopToken()
        return driving.consume(exporting.export(directory, names, stop, overwrite), stop, on_event=on_event)


def contents(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}
