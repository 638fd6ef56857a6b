"""Exports of a run that is finished: from its ``model.safetensors``, recipe and data; its report tells them afterwards."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from typing import Any

from engine.errors import Cancelled, EngineError, UsageError
from engine.events.cancellation import StopToken
from engine.events.event import Event, Finished, Notice, StageFinished, StageStarted
from engine.events.progress import quietly
from engine.export.base import ExportContext
from engine.export.finished import check_new, check_unchanged, check_writable, merged, said_of
from engine.export.making import Comparison, Entry, Known, exports, fingerprint, timed
from engine.export.registry import FORMATS, find
from engine.lowering.files import NAME, lowering_of_file
from engine.lowering.registry import lowering_class
from engine.paths import save
from engine.recipe.recipe import Recipe
from engine.report.report import Report
from engine.report.runtimes import fastest, led
from engine.runs.exporting import context_of, forwards
from engine.tasks.registry import task_of
from engine.tasks.subject import Subject

Steps = Generator[Event, Any, Report]


def export(directory: Path, names: Sequence[str], stop: StopToken, overwrite: bool = False) -> Steps:
    """Write ``names`` into the folder of a finished run and enter them in its report.

    Raises UsageError for a format that is not known, or not for the run's kind of model, and EngineError where a file is there already
    and ``overwrite`` is not given, where the model's file is not the run's any more, where the folder cannot be written, or in the end
    where a format could not be written. What was there before then stays as it was. Stopped, it enters what is finished and raises
    Cancelled.
    """
    if not names:
        raise UsageError(f"no format is named: give some of {', '.join(FORMATS)}")
    report, recipe = Report.load(directory), Recipe.load(directory / "recipe.yaml")
    # Its tables are written again in the end: what they lack is told before the work.
    report.shown(directory)
    # Reports of earlier versions do not name the lowering; the file itself does.
    lowering = report.data.get("lowering")
    lowering = lowering if isinstance(lowering, str) and lowering in _lowerings() else lowering_of_file(directory / NAME)
    for name in names:
        find(name, lowering)
    check_unchanged(directory, report.data)
    # Earlier exports are read back and timed again beside the new ones: figures of another hour do not compare.
    there = _earlier(directory, report.data)
    if not there and set(names) == {"safetensors"}:
        yield Finished(str(directory), report.met, f"{NAME} is there as the run wrote it")
        return report
    if not overwrite:
        check_new(directory, names)
    check_writable(directory)
    start = stop.clock()
    yield StageStarted("export", "Exporting")
    context, test = yield from _reopened(directory, lowering, recipe, stop)
    earlier = [entry for entry in there if entry["format"] not in names]
    made = [_changed(entry) for entry in earlier if not _same(directory, entry)]
    written = ("safetensors", *(entry["format"] for entry in earlier if _readable(directory, entry)))
    order = (*written, *(name for name in names if name != "safetensors"))
    try:
        runners = yield from exports(order, context, directory, test, stop, made, written)
        # What could not be written again is still there as it was.
        failed = {entry["format"] for entry in made if not entry["path"]}
        kept = [entry["format"] for entry in there if entry["format"] in failed and _readable(directory, entry)]
        written = (*written, *kept)
        runners |= yield from exports(kept, context, directory, test, stop, made, kept)
        rows = yield from timed(made, runners, test, stop, _known(report))
    except (Cancelled, GeneratorExit, KeyboardInterrupt):
        new = [entry for entry in made if entry["format"] not in written]
        _save(directory, report, new, [])
        raise
    changed = _save(directory, report, made, rows)
    if sentence := fastest(changed.data):
        yield Notice(sentence)
    yield StageFinished("export", round(stop.clock() - start, 3))
    broken = [entry for entry in made if not entry["path"]]
    if broken:
        raise EngineError("; ".join(f"{entry['format']} was not exported: {entry['reason']}" for entry in broken))
    yield Finished(str(directory), changed.met, said_of([entry for entry in made if entry["format"] in names]))
    return changed


def _lowerings() -> frozenset[str]:
    return frozenset(name for entry in FORMATS.values() for name in entry.lowerings)


def _known(report: Report) -> Known:
    """The figures of the run itself: of fp32, and of the form that it chose."""
    trained = report.data.get("qat") or {}
    return Known(report.data["baseline"] or {}, trained if trained.get("kept") else report.data["ptq"] or {})


def _save(directory: Path, report: Report, made: Sequence[Entry], rows: Sequence[Entry]) -> Report:
    """The report with what was ``made``; without new ``rows`` those of files that are still the same stay."""
    replaced = {entry["format"] for entry in made if entry["path"]}
    kept = [row for row in report.data.get("runtimes") or () if row.get("format") not in replaced]
    runtimes = list(rows) or (kept if len(kept) > 1 else [])
    found = {**report.data, "exports": merged(report.data["exports"], made), "runtimes": runtimes}
    changed = Report(led(found, earlier=report.data))
    if made:
        save(directory / "report.json", changed.to_json().encode())
        save(directory / "report.md", changed.to_markdown().encode())
    return changed


def _earlier(directory: Path, report: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The entries whose files an earlier export left in the folder."""
    known = [entry for entry in report["exports"] if isinstance(entry, Mapping) and entry.get("path")]
    known = [entry for entry in known if entry.get("format") in FORMATS and entry["format"] != "safetensors"]
    return [entry for entry in known if all((directory / file).exists() for file in FORMATS[entry["format"]].files)]


def _same(directory: Path, entry: Mapping[str, Any]) -> bool:
    try:
        return entry.get("sha256") in (None, fingerprint(directory, FORMATS[entry["format"]]))
    except OSError:
        return False  # Something else stands in the file's place.


def _readable(directory: Path, entry: Mapping[str, Any]) -> bool:
    """Whether the file is the one that was compared, and can be again: without its runtime the earlier figures stay."""
    form = FORMATS[entry["format"]]
    return _same(directory, entry) and not form.missing(form.runs)


def _changed(entry: Mapping[str, Any]) -> Entry:
    """The entry of a file that is not the one that was compared."""
    reason = f"it was changed since it was exported: export it again with `--to {entry['format']} --force`"
    gone: Entry = {"parity": None, "value": None, "verified": False, "differs": False, "latency_ms": {}, "latency_batched_ms": {}}
    return {**entry, **gone, "reason": reason}


def _reopened(directory: Path, lowering: str, recipe: Recipe, stop: StopToken) -> Generator[Event, Any, tuple[ExportContext, Comparison]]:
    """What files are made from and compared on. The fp32 model is needed for what stayed whole, and to be timed beside the files."""
    kind, entry = lowering_class(lowering), task_of(recipe.model, recipe.task)
    recipe = entry.settled(recipe)
    subject: Subject | None = None
    try:
        loaded: Subject = quietly(entry.load(recipe, stop, "cpu"), stop)
    except EngineError as error:
        task = entry.alone(recipe)
        if task is None:
            raise
        try:
            reopened = kind.reopen(directory, None)
        except EngineError:
            raise error from None
        yield Notice(f"fp32 is not timed again: {error}", "warning")
    else:
        subject, task = loaded, loaded.task
        reopened = kind.reopen(directory, subject)
    for warning in reopened.warnings:
        yield Notice(warning, "warning")
    forms = forwards(kind.fp32_forms(subject, stop), "cpu") if subject else {}
    context = context_of(kind, reopened.model, task, subject, recipe, reopened.recipe, reopened.isa)
    return context, Comparison(task, recipe.data.batch, recipe.data.limit, forms)
