"""Exports of one run: each written whole or not at all, read back, compared, and in the end timed side by side."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
from collections.abc import Collection, Generator, Mapping, Sequence
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import Any

from engine.cancel import StopToken
from engine.data.base import Data
from engine.errors import Cancelled, EngineError, one_line
from engine.events import Event, Notice, Table
from engine.export import parity
from engine.export.base import Given, Runner
from engine.export.registry import Format, find, install
from engine.paths import unwritable

Entry = dict[str, Any]
Steps = Generator[Event, None, list[Entry]]


def exports(
    names: Sequence[str], given: Given, directory: Path, data: Data, batch: int, limit: int | None, stop: StopToken,
    known: Mapping[str, Any], written: Collection[str] = ("safetensors",),
) -> Steps:  # fmt: skip
    """Contract 2's entries for ``names``, in their order. The files of ``written`` are in ``directory`` already and are only read
    back; ``known`` holds the ``latency_ms`` and ``latency_batched_ms`` of ``model.safetensors``, its figures where nothing else is
    timed.

    A format that cannot be written, or whose file is not what was measured, is an entry with ``verified`` false and a
    ``reason``; only a damaged ``model.safetensors`` raises EngineError.
    """
    entries: list[Entry] = []
    runners: dict[str, Runner] = {}
    for name in names:
        entry = find(name)
        yield Notice(f"{entry.name}: {'reading back' if name in written else 'writing'} {entry.files[0]}")
        try:
            made, runner = yield from _one(entry, given, directory, data, batch, limit, stop, name in written)
        except (EngineError, OSError) as error:
            if name == "safetensors":
                raise
            made, runner = failed(entry, one_line(error, 300)), None
            yield Notice(f"{name} was not exported: {made['reason']}", "warning")
        entries.append(made)
        if runner is not None:
            runners[name] = runner
    if set(runners) - {"safetensors"}:
        timed = parity.times(runners, data, stop)
        for made in entries:
            if made["format"] in timed:
                made["latency_ms"], made["latency_batched_ms"] = (t.to_dict() for t in timed[made["format"]])
    else:
        for made in entries:
            if made["verified"]:
                made.update({key: known[key] for key in ("latency_ms", "latency_batched_ms") if key in known})
    yield table(entries)
    return entries


def _one(
    entry: Format, given: Given, directory: Path, data: Data, batch: int, limit: int | None, stop: StopToken,
    written: bool,
) -> Generator[Event, None, tuple[Entry, Runner | None]]:  # fmt: skip
    start = stop.clock()
    if not written:
        write(entry, given, directory)
    path = directory / entry.files[0]
    made: Entry = {
        "format": entry.name, "path": path.name, "size_bytes": sum((directory / name).stat().st_size for name in entry.files),
        "sha256": fingerprint(directory, entry), "runtime": entry.title, "parity": None, "value": None, "verified": False,
        "latency_ms": {}, "latency_batched_ms": {},
    }  # fmt: skip
    size = f"{entry.files[0]}: {made['size_bytes'] / 1e6:.2f} MB"
    if missing := entry.missing(entry.runs):
        made["install"] = install(missing)
        made["reason"] = f"{entry.title} is not installed: {made['install']}, then export again"
        yield Notice(f"{size}, not verified: {made['reason']}", "warning")
        return made, None
    try:
        runner = parity.load(entry, path, given)
        found = yield from parity.compare(runner, given, data, batch, limit, stop)
    except (Cancelled, GeneratorExit):
        raise
    except Exception as error:
        if entry.name == "safetensors":
            raise
        made["reason"] = one_line(error, 300)
        yield Notice(f"{size}, not verified: {made['reason']}", "warning")
        return made, None
    same = asdict(found)
    made.update(
        runtime=runner.label, value=same.pop("value"), interval=same.pop("interval"), parity=same, verified=True,
        seconds=round(stop.clock() - start, 3),
    )  # fmt: skip
    yield Notice(f"{size}, read back by {runner.label}, largest difference {found.max_abs:.1e}, same answer {found.agreement:.2%}")
    return made, runner


def write(entry: Format, given: Given, directory: Path) -> None:
    """Put the format's files into ``directory``, all of them or, with EngineError, none: what was there stays."""
    if missing := entry.missing(entry.writes):
        raise EngineError(f"{entry.name} needs {' and '.join(missing)}: {install(missing)}, then export again")
    try:
        hidden = Path(tempfile.mkdtemp(dir=directory, prefix=f".{entry.name}."))
    except OSError as error:
        raise unwritable(directory / entry.files[0], error) from error
    try:
        import_module(entry.module).write(given, hidden / entry.files[0])
        # The file that is loaded comes last: it names the others.
        for name in reversed(entry.files):
            (hidden / name).chmod(0o644)
            os.replace(hidden / name, directory / name)
    except (EngineError, Cancelled):
        raise
    except OSError as error:
        raise unwritable(directory / entry.files[0], error) from error
    except Exception as error:
        raise EngineError(f"{entry.name} cannot be written ({type(error).__name__}: {one_line(error, 160)})") from error
    finally:
        with contextlib.suppress(OSError):
            shutil.rmtree(hidden)


def failed(entry: Format, reason: str) -> Entry:
    """The entry of a format that has no file."""
    return {
        "format": entry.name, "path": "", "size_bytes": 0, "runtime": entry.title, "parity": None, "value": None, "verified": False,
        "latency_ms": {}, "latency_batched_ms": {}, "reason": reason,
    }  # fmt: skip


def fingerprint(directory: Path, entry: Format) -> str:
    """A hash of the format's files."""
    digest = hashlib.sha256()
    for name in entry.files:
        with (directory / name).open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def table(entries: Sequence[Entry]) -> Table:
    """The exports for a person to read."""
    return Table(
        "exports", f"Exports ─ {len(entries)}", ("format", "file", "runtime", "same answer", "top-1", "ms ×1", "ms ×64"),
        tuple(_row(entry) for entry in entries),
    )  # fmt: skip


def _row(entry: Entry) -> tuple[str, ...]:
    same, value = (entry["parity"] or {}).get("agreement"), entry["value"]
    single, batched = (entry[key].get("p50") for key in ("latency_ms", "latency_batched_ms"))
    figures = (("", "{:.2%}", same), ("", "{:.2%}", value), ("", "{:.2f}", single), ("", "{:.2f}", batched))
    shown = tuple(none if number is None else form.format(number) for none, form, number in figures)
    runtime = entry["runtime"] if entry["verified"] else "not verified" if entry["path"] else "not exported"
    return (entry["format"], entry["path"], runtime, *shown)
