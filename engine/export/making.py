"""Exports of one run: each written whole or not at all, read back and compared, in the end all timed."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engine.errors import Cancelled, EngineError, one_line
from engine.events.cancellation import StopToken
from engine.events.event import Event, Notice, Table
from engine.export import parity, timing
from engine.export.base import ExportContext, Runner
from engine.export.placing import in_place, placed, size_of
from engine.export.registry import Format, find, install
from engine.reading import regular
from engine.report.mismatch import DIFFERS, differs, entered, further
from engine.tasks.base import Forward, Task
from engine.tasks.timing import Latency, Timing

Entry = dict[str, Any]
_STOPPED = "it was not read back: the export was stopped before"
_COLUMNS = ("format", "file", "size", "runtime", "same answer", "largest difference")


@dataclass(frozen=True)
class Comparison:
    """What files are compared on: the task's test items, or the first ``limit`` of them, in batches. ``fp32`` are the forms of the
    fp32 model that are timed beside them, by name; the first is what outputs are held against."""

    task: Task
    batch: int
    limit: int | None = None
    fp32: Mapping[str, Forward] = field(default_factory=dict)


@dataclass(frozen=True)
class Known:
    """The figures that the run itself has of the forms that it timed: fp32's, and of the model that was chosen."""

    fp32: Mapping[str, Any]
    native: Mapping[str, Any]


def exports(
    names: Sequence[str], context: ExportContext, directory: Path, test: Comparison, stop: StopToken, entries: list[Entry],
    written: Collection[str] = ("safetensors",),
) -> Generator[Event, None, dict[str, Runner]]:  # fmt: skip
    """Add the report's entry for each of ``names`` to ``entries``, in order, as it comes; what could be read back, by format. The
    files of ``written`` are in ``directory`` already and are only read.

    A format that cannot be written, or whose file is not what was measured, is an entry with ``verified`` false and a
    ``reason``, and of one whose outputs differ also ``differs``; only a damaged ``model.safetensors`` raises EngineError.
    """
    runners: dict[str, Runner] = {}
    for name in names:
        there = name in written
        entry = in_place(find(name, context.lowering), directory) if there else find(name, context.lowering)
        stop.check()
        yield Notice(f"{entry.name}: {'reading back' if there else 'writing'} {entry.files[0]}")
        note = ""
        try:
            note = "" if there else write(entry, context, directory)
            entries.append(_made(entry, directory, note) | _steps_keys(test.task))
        except (EngineError, OSError) as error:
            if there and name == "safetensors":
                raise
            entries.append(failed(entry, one_line(error, 300)) | _steps_keys(test.task))
            yield Notice(f"{name} was not exported: {entries[-1]['reason']}", "warning")
            continue
        runner = yield from _read_back(entry, context, directory, test, stop, entries[-1], strict=there and name == "safetensors")
        if runner is not None:
            runners[name] = runner
    return runners


def write(entry: Format, context: ExportContext, directory: Path) -> str:
    """Put the format's files into ``directory``; the note of what differs. Raises EngineError as ``placed`` does."""
    if not entry.holds(context.lowering):
        # Told before packages are asked for, which would not help.
        entry.module(context.lowering).write(context, directory / entry.files[0])
    return placed(entry, directory, lambda path: entry.module(context.lowering).write(context, path)) or ""


def _read_back(
    entry: Format, context: ExportContext, directory: Path, test: Comparison, stop: StopToken, made: Entry, strict: bool
) -> Generator[Event, None, Runner | None]:
    """Enter in ``made`` how the file compares; what runs it, None where nothing does, or where its outputs are others. ``strict``
    raises what is else a reason."""
    start = stop.clock()
    size = f"{entry.files[0]}: {made['size_bytes'] / 1e6:.2f} MB"
    if missing := entry.missing(entry.runs):
        made["install"] = install(missing)
        made["reason"] = f"not verified, {' and '.join(missing)} is not installed: {made['install']}, then export again"
        yield Notice(f"{size}, {made['reason']}", "warning")
        return None
    try:
        runner = parity.load(entry, directory / entry.files[0], context)
        fp32 = next(iter(test.fp32.values()), None)
        steps = parity.compare(runner, context.measured, test.task, test.batch, test.limit, stop, fp32=fp32)
        whole, cached = yield from steps
    except (Cancelled, GeneratorExit):
        raise
    except Exception as error:
        if strict:
            raise
        made["reason"] = one_line(error, 300) or type(error).__name__
        yield Notice(f"{size}, not verified: {made['reason']}", "warning")
        return None
    made.pop("reason")
    made.update(
        runtime=runner.label, kernel=runner.kernel, value=whole.value, interval=whole.interval, parity=whole.entry(test.task),
        verified=True, seconds=round(stop.clock() - start, 3), note="; ".join(part for part in (made["note"], runner.note) if part),
    )  # fmt: skip
    if cached is not None:
        made["parity_cached"] = cached.entry(test.task)
    if differs(made) or further(made):
        yield from _by_layers(made, runner)
    apart = entered(made)
    agreement = "" if whole.agreement is None else f", same answer {whole.agreement:.2%}"
    summary = f"{size}, read back by {runner.label}, largest difference {whole.max_abs:.1e}{agreement}"
    if made["note"]:
        summary += f"; {made['note']}"
    yield Notice(f"{summary}: it {DIFFERS}" if apart else summary, "warning" if apart else "info")
    if alarm := made.get("alarm"):
        yield Notice(f"{entry.files[0]} is {alarm}", "warning")
    return None if apart else runner


def _by_layers(made: Entry, runner: Runner) -> Generator[Event, None, None]:
    """Enter in ``made``, of a file whose outputs are apart, whether its layers are."""
    yield Notice(f"{made['path']}: its outputs are apart, its layers are compared one by one")
    try:
        found = runner.layers()
    except Exception as error:
        yield Notice(f"{made['path']}: its layers cannot be compared ({one_line(error, 160)})", "warning")
        return
    if found is not None:
        made["layers_alone"] = found.entry()


def timed(
    entries: list[Entry], runners: Mapping[str, Runner], test: Comparison, stop: StopToken, known: Known
) -> Generator[Event, None, list[Entry]]:
    """Give ``entries`` their latencies; the report's ``runtimes``, empty where there is nothing but ``model.safetensors``."""
    steps = _steps_timed if test.task.stepwise else _batches_timed
    rows = yield from steps(entries, runners, test, stop, known)
    yield table(entries, test.task)
    return rows


def _batches_timed(
    entries: list[Entry], runners: Mapping[str, Runner], test: Comparison, stop: StopToken, known: Known
) -> Generator[Event, None, list[Entry]]:
    """All in turns. Of ``model.safetensors`` alone the run's own figures are told."""
    if set(runners) <= {"safetensors"}:
        for made in entries:
            if made["verified"]:
                made.update({key: known.native[key] for key in ("latency_ms", "latency_batched_ms") if key in known.native})
        return []
    forms = timing.fp32_runners(test.fp32)
    yield Notice(f"timing {len(runners) + bool(forms)} runtimes in turns")
    found = yield from timing.times({**forms, **runners}, test.task, stop)
    for made in entries:
        if made["path"] and made["format"] in found:
            made.update(timing.latencies(found[made["format"]]))
    return timing.rows(entries, test.task, forms, found)


def _steps_timed(
    entries: list[Entry], runners: Mapping[str, Runner], test: Comparison, stop: StopToken, known: Known
) -> Generator[Event, None, list[Entry]]:
    """Each by itself: what the run's own forms are timed with stays on a device of its own."""
    for made in entries:
        runner = runners.get(made["format"])
        if runner is None or runner.last is None:
            continue
        try:
            found = yield from test.task.time_steps({made["format"]: runner.last}, stop)
        except (Cancelled, GeneratorExit):
            raise
        except Exception as error:
            made.update(verified=False, reason=one_line(error, 300) or type(error).__name__)
            continue
        one: Timing = found[made["format"]]
        times: tuple[Latency, ...] = tuple(one.latencies[workload.key] for workload in test.task.workloads)
        made.update(timing.latencies(times), **one.details)
    return timing.known_rows(entries, known.fp32, known.native)


def _steps_keys(task: Task) -> Entry:
    """What an entry has besides of a task whose outputs are also made step by step."""
    return {"parity_cached": None, "latency": {}} if task.stepwise else {}


def _made(entry: Format, directory: Path, note: str) -> Entry:
    """The entry of a file that nothing was done with yet."""
    return {
        **failed(entry, _STOPPED), "path": entry.files[0], "size_bytes": size_of(entry, directory), "sha256": fingerprint(directory, entry),
        "note": note,
    }  # fmt: skip


def failed(entry: Format, reason: str) -> Entry:
    """The entry of a format that has no file."""
    return {
        "format": entry.name, "path": "", "size_bytes": 0, "runtime": entry.title, "kernel": "", "parity": None, "value": None,
        "verified": False, "latency_ms": {}, "latency_batched_ms": {}, "note": "", "reason": reason,
    }  # fmt: skip


def fingerprint(directory: Path, entry: Format) -> str:
    """A hash of the format's files, and of the optional ones that are there; of a folder, of all that is in it. Raises OSError for what
    is missing or no regular file."""
    digest = hashlib.sha256()
    for name in (*entry.files, *(name for name in entry.optional if (directory / name).is_file())):
        place = directory / name
        for path in sorted(path for path in place.rglob("*") if path.is_file()) if place.is_dir() else [place]:
            regular(path)
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def table(entries: Sequence[Entry], task: Task) -> Table:
    """The exports for a person to read."""
    heads = (task.metric.name, *(f"ms {workload.short}" for workload in task.workloads[:2]))
    return Table("exports", f"Exports ─ {len(entries)}", (*_COLUMNS, *heads), tuple(_row(entry, task) for entry in entries))


def _row(entry: Entry, task: Task) -> tuple[str, ...]:
    same, value = entry["parity"] or {}, entry["value"]
    agreement, worst = same.get("agreement"), same.get("max_abs")
    times = [entry[key].get("p50") for key in ("latency_ms", "latency_batched_ms")]
    unread = DIFFERS if differs(entry) else "not verified" if entry["path"] else "not exported"
    return (
        entry["format"], entry["path"], f"{entry['size_bytes'] / 1e6:.2f} MB" if entry["path"] else "",
        entry["runtime"] if entry["verified"] else unread, "" if agreement is None else f"{agreement:.2%}",
        "" if worst is None else f"{worst:.2g}", "" if value is None else task.metric.format(value),
        *("" if time is None else f"{time:.2f}" for time in times),
    )  # fmt: skip
