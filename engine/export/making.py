"""Exports of one run: each written whole or not at all, read back and compared, in the end all timed side by side."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from engine.errors import Cancelled, EngineError, one_line
from engine.events.cancellation import StopToken
from engine.events.event import Event, Notice, Table
from engine.export import parity, timing
from engine.export.base import Given, Runner
from engine.export.placing import placed, size_of
from engine.export.registry import Format, find, install
from engine.report.mismatch import DIFFERS, differs, entered
from engine.tasks.base import Batch, Task

Entry = dict[str, Any]


@dataclass(frozen=True)
class Comparison:
    """What files are compared on: the test split or its first ``limit`` images, in batches. ``fp32`` are the forms of the fp32
    model that are timed beside them, by name; ``inputs_of``
    gives the program's inputs of a batch, in order."""

    task: Task
    batch: int
    limit: int | None = None
    fp32: Mapping[str, nn.Module] = field(default_factory=dict)
    inputs_of: Callable[[Batch], tuple[Tensor, ...]] = lambda part: part.args


def exports(
    names: Sequence[str], given: Given, directory: Path, test: Comparison, stop: StopToken, entries: list[Entry],
    written: Collection[str] = ("safetensors",),
) -> Generator[Event, None, dict[str, Runner]]:  # fmt: skip
    """Add contract 2's entry for each of ``names`` to ``entries``, in order, as it comes; what could be read back, by format. The
    files of ``written`` are in ``directory`` already and are only read.

    A format that cannot be written, or whose file is not what was measured, is an entry with ``verified`` false and a
    ``reason``, and of one whose outputs differ also ``differs``; only a damaged ``model.safetensors`` raises EngineError.
    """
    runners: dict[str, Runner] = {}
    for name in names:
        entry = find(name)
        yield Notice(f"{entry.name}: {'reading back' if name in written else 'writing'} {entry.files[0]}")
        try:
            if name not in written:
                write(entry, given, directory)
            entries.append(_made(entry, directory))
        except (EngineError, OSError) as error:
            if name == "safetensors":
                raise
            entries.append(failed(entry, one_line(error, 300)))
            yield Notice(f"{name} was not exported: {entries[-1]['reason']}", "warning")
            continue
        runner = yield from _read_back(entry, given, directory, test, stop, entries[-1])
        if runner is not None:
            runners[name] = runner
    return runners


def timed(
    entries: list[Entry], runners: Mapping[str, Runner], test: Comparison, stop: StopToken, known: Mapping[str, Any]
) -> Generator[Event, None, list[Entry]]:
    """Give ``entries`` their latencies; the report's ``runtimes``, empty where there is nothing but ``model.safetensors``, whose
    figures are then those of ``known``: ``latency_ms`` and ``latency_batched_ms``."""
    if set(runners) <= {"safetensors"}:
        for made in entries:
            if made["verified"]:
                made.update({key: known[key] for key in ("latency_ms", "latency_batched_ms") if key in known})
        yield table(entries)
        return []
    forms = timing.fp32_runners(test.fp32)
    yield Notice(f"timing {len(runners) + bool(forms)} runtimes in turns")
    found = yield from timing.times({**forms, **runners}, test.task, stop, inputs_of=test.inputs_of)
    for made in entries:
        if made["path"] and made["format"] in found:
            made["latency_ms"], made["latency_batched_ms"] = (t.to_dict() for t in found[made["format"]])
    yield table(entries)
    return timing.rows(entries, forms, found)


def _made(entry: Format, directory: Path) -> Entry:
    """The entry of a file that nothing was done with yet."""
    return {
        "format": entry.name, "path": entry.files[0], "size_bytes": size_of(entry, directory),
        "sha256": fingerprint(directory, entry), "runtime": entry.title, "kernel": "", "parity": None, "value": None, "verified": False,
        "latency_ms": {}, "latency_batched_ms": {}, "reason": "it was not read back: the export was stopped before",
    }  # fmt: skip


def _read_back(
    entry: Format, given: Given, directory: Path, test: Comparison, stop: StopToken, made: Entry
) -> Generator[Event, None, Runner | None]:
    """Enter in ``made`` how the file compares; what runs it, None where nothing does, or where its outputs are others."""
    start = stop.clock()
    size = f"{entry.files[0]}: {made['size_bytes'] / 1e6:.2f} MB"
    if missing := entry.missing(entry.runs):
        made["install"] = install(missing)
        made["reason"] = f"{entry.title} is not installed: {made['install']}, then export again"
        yield Notice(f"{size}, not verified: {made['reason']}", "warning")
        return None
    try:
        runner = parity.load(entry, directory / entry.files[0], given)
        fp32 = next(iter(test.fp32.values()), None)
        found = yield from parity.compare(runner, given, test.task, test.batch, test.limit, stop, fp32=fp32)
    except (Cancelled, GeneratorExit):
        raise
    except Exception as error:
        if entry.name == "safetensors":
            raise
        made["reason"] = one_line(error, 300)
        yield Notice(f"{size}, not verified: {made['reason']}", "warning")
        return None
    same = asdict(found)
    made.pop("reason")
    made.update(
        runtime=runner.label, kernel=runner.kernel, value=same.pop("value"), interval=same.pop("interval"), parity=same, verified=True,
        seconds=round(stop.clock() - start, 3),
    )  # fmt: skip
    apart = entered(made)
    told = f"{size}, read back by {runner.label}, largest difference {found.max_abs:.1e}, same answer {found.agreement:.2%}"
    yield Notice(f"{told}: it {DIFFERS}" if apart else told, "warning" if apart else "info")
    if said := made.get("alarm"):
        yield Notice(f"{entry.files[0]} is {said}", "warning")
    return None if apart else runner


def write(entry: Format, given: Given, directory: Path) -> None:
    """Put the format's files into ``directory``. Raises EngineError as ``placed`` does."""
    placed(entry, directory, lambda path: import_module(entry.module).write(given, path))


def failed(entry: Format, reason: str) -> Entry:
    """The entry of a format that has no file."""
    return {
        "format": entry.name, "path": "", "size_bytes": 0, "runtime": entry.title, "parity": None, "value": None, "verified": False,
        "latency_ms": {}, "latency_batched_ms": {}, "reason": reason,
    }  # fmt: skip


def fingerprint(directory: Path, entry: Format) -> str:
    """A hash of the format's files, and of the optional ones that are there."""
    digest = hashlib.sha256()
    for name in (*entry.files, *(name for name in entry.optional if (directory / name).is_file())):
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
    unread = DIFFERS if differs(entry) else "not verified" if entry["path"] else "not exported"
    return (entry["format"], entry["path"], entry["runtime"] if entry["verified"] else unread, *shown)
