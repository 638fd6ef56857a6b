"""What holds for exports of every finished run: its file is the one that was measured, and nothing is overwritten unasked."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from engine.errors import EngineError
from engine.export.making import fingerprint
from engine.export.registry import FORMATS
from engine.lowering.files import NAME
from engine.report.mismatch import differs


def merged(before: Sequence[Mapping[str, Any]], made: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The report's exports: those just made in place of earlier ones. A format that failed now does not undo its earlier file."""
    found = {str(entry.get("format")): dict(entry) for entry in before}
    for entry in made:
        if entry["path"] or not (found.get(entry["format"]) or {}).get("path"):
            found[entry["format"]] = dict(entry)
    return list(found.values())


def said_of(made: Sequence[Mapping[str, Any]]) -> str:
    """What an export came to: the files, which of them are not what was measured, and what their SQNRs warn of."""
    told = [f"exported: {', '.join(str(entry['path']) for entry in made)}"]
    told += [f"{entry['path']} {entry['reason']}" for entry in made if differs(entry)]
    told += [f"{entry['path']} is {entry['alarm']}" for entry in made if entry.get("alarm")]
    return "; ".join(told)


def check_unchanged(directory: Path, report: Mapping[str, Any]) -> None:
    """Raises EngineError where ``model.safetensors`` is missing or is not the file that the report is about."""
    path = directory / NAME
    if not path.is_file():
        raise EngineError(f"{path} does not exist: run it again with `qtui run --recipe {directory / 'recipe.yaml'}`")
    entry: Mapping[str, Any] = next((e for e in report["exports"] if isinstance(e, Mapping) and e.get("format") == "safetensors"), {})
    size, known = entry.get("size_bytes"), entry.get("sha256")
    if (size is not None and size != path.stat().st_size) or (known and known != fingerprint(directory, FORMATS["safetensors"])):
        raise EngineError(
            f"{path} was changed since the run, so its figures are not this file's: "
            f"put the file back, or run again with `qtui run --recipe {directory / 'recipe.yaml'}`"
        )


def check_new(directory: Path, names: Sequence[str]) -> None:
    """Raises EngineError where a file of ``names`` is there already, whoever wrote it."""
    for name in names:
        there = [file for file in FORMATS[name].files if name != "safetensors" and (directory / file).exists()]
        if there:
            raise EngineError(f"{directory / there[0]} exists already: leave {name} out, or write it again with --force")


def check_writable(directory: Path) -> None:
    """Raises EngineError now rather than after the work."""
    try:
        tempfile.TemporaryFile(dir=directory).close()
    except OSError as error:
        raise EngineError(
            f"{directory} cannot be written ({error.strerror or error}): copy the run to a folder that can, and export it there"
        ) from error
