"""Exports of a run that is finished: from its ``model.safetensors``, recipe and data; its report tells them afterwards."""

from __future__ import annotations

import warnings
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from torch import nn

from engine.data import registry as data_registry
from engine.errors import Cancelled, EngineError, UsageError
from engine.events.cancellation import StopToken
from engine.events.event import Event, Finished, Notice, StageFinished, StageStarted
from engine.export.base import Given
from engine.export.finished import check_new, check_unchanged, check_writable, merged, said_of
from engine.export.making import Comparison, Entry, exports, fingerprint, timed
from engine.export.registry import FORMATS, find
from engine.lowering.files import NAME
from engine.lowering.graph import tracing
from engine.lowering.graph.artifact import load_network, read
from engine.lowering.graph.fp32_forms import fp32_forms
from engine.lowering.graph.fuse import find_pairs, fuse
from engine.lowering.graph.program import Program
from engine.paths import save
from engine.recipe.recipe import Recipe
from engine.report.report import Report
from engine.report.runtimes import fastest
from engine.runs.exporting import calibration_inputs
from engine.tasks import classification
from engine.tasks.base import Task
from engine.tasks.fitting import transform_of
from engine.tasks.subject import Subject

T = TypeVar("T")
Steps = Generator[Event, Any, Report]


def export(directory: Path, names: Sequence[str], stop: StopToken, overwrite: bool = False) -> Steps:
    """Write ``names`` into the folder of a finished run and enter them in its report.

    Raises UsageError for a format that is not known, and EngineError where a file is there already and ``overwrite`` is not
    given, where the model's file is not the run's any more, where the folder cannot be written, or in the end where a format
    could not be written. What was there before then stays as it was. Stopped, it enters what is finished and raises Cancelled.
    """
    if not names:
        raise UsageError(f"no format is named: give some of {', '.join(FORMATS)}")
    report, recipe = Report.load(directory), Recipe.load(directory / "recipe.yaml")
    if (report.data["baseline"] or {}).get("metric") == "perplexity":
        # Language models bring transformers, which others do without.
        from engine.runs import language_reexport as language_exporting

        return (yield from language_exporting.export(directory, report, recipe, names, stop, overwrite))
    for name in names:
        find(name)
    check_unchanged(directory, report.data)
    if not overwrite:
        check_new(directory, names)
    check_writable(directory)
    start = stop.clock()
    yield StageStarted("export", "Exporting")
    given, test = yield from _given(directory, recipe, stop)
    # Earlier exports are read back and timed again beside the new ones: figures of another hour do not compare.
    there = _earlier(directory, report.data)
    earlier = [entry for entry in there if entry["format"] not in names]
    made = [_changed(entry) for entry in earlier if not _same(directory, entry)]
    written = ("safetensors", *(entry["format"] for entry in earlier if _readable(directory, entry)))
    order = (*written, *(name for name in names if name != "safetensors"))
    known: Mapping[str, Any] = next((e for e in report.data["exports"] if e.get("format") == "safetensors"), {})
    try:
        runners = yield from exports(order, given, directory, test, stop, made, written)
        # What could not be written again is still there as it was.
        failed = {entry["format"] for entry in made if not entry["path"]}
        kept = [entry["format"] for entry in there if entry["format"] in failed and _readable(directory, entry)]
        written = (*written, *kept)
        runners |= yield from exports(kept, given, directory, test, stop, made, kept)
        rows = yield from timed(made, runners, test, stop, known)
    except (Cancelled, GeneratorExit, KeyboardInterrupt):
        new = [entry for entry in made if entry["format"] not in written]
        _save(directory, report, new, [])
        raise
    changed = _save(directory, report, made, rows)
    if said := fastest(changed.data):
        yield Notice(said)
    yield StageFinished("export", round(stop.clock() - start, 3))
    broken = [entry for entry in made if not entry["path"]]
    if broken:
        raise EngineError("; ".join(f"{entry['format']} was not exported: {entry['reason']}" for entry in broken))
    yield Finished(str(directory), changed.met, said_of([entry for entry in made if entry["format"] in names]))
    return changed


def _save(directory: Path, report: Report, made: Sequence[Entry], rows: Sequence[Entry]) -> Report:
    """The report with what was ``made``; without new ``rows`` those of files that are still the same stay."""
    replaced = {entry["format"] for entry in made if entry["path"]}
    kept = [row for row in report.data.get("runtimes") or () if row.get("format") not in replaced]
    runtimes = list(rows) or (kept if len(kept) > 1 else [])
    changed = Report({**report.data, "exports": merged(report.data["exports"], made), "runtimes": runtimes})
    if made:
        save(directory / "report.json", changed.to_json().encode())
        save(directory / "report.md", changed.to_markdown().encode())
    return changed


def _earlier(directory: Path, report: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The entries whose files an earlier export left in the folder."""
    known = [entry for entry in report["exports"] if isinstance(entry, Mapping) and entry.get("path")]
    known = [entry for entry in known if entry.get("format") in FORMATS and entry["format"] != "safetensors"]
    return [entry for entry in known if all((directory / file).is_file() for file in FORMATS[entry["format"]].files)]


def _same(directory: Path, entry: Mapping[str, Any]) -> bool:
    return entry.get("sha256") in (None, fingerprint(directory, FORMATS[entry["format"]]))


def _readable(directory: Path, entry: Mapping[str, Any]) -> bool:
    """Whether the file is the one that was compared, and can be again: without its runtime the earlier figures stay."""
    form = FORMATS[entry["format"]]
    return _same(directory, entry) and not form.missing(form.runs)


def _changed(entry: Mapping[str, Any]) -> Entry:
    """The entry of a file that is not the one that was compared."""
    reason = f"it was changed since it was exported: export it again with `--to {entry['format']} --force`"
    gone: Entry = {"parity": None, "value": None, "verified": False, "differs": False, "latency_ms": {}, "latency_batched_ms": {}}
    return {**entry, **gone, "reason": reason}


def _given(directory: Path, recipe: Recipe, stop: StopToken) -> Generator[Event, Any, tuple[Given, Comparison]]:
    program, header = read(directory / NAME)
    try:
        # The fp32 model is needed for what stayed whole, and to be timed beside the files.
        loaded: Subject | None = _quietly(classification.load(recipe, stop, "cpu"), stop)
    except EngineError as error:
        if _needs_code(program):
            raise
        loaded = None
        yield Notice(f"fp32 is not timed again: {error}", "warning")
    task = loaded.task if loaded else _task(recipe)
    whole = loaded.model if loaded else None
    modules = dict(whole.named_modules()) if whole is not None else {}
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        model = load_network(directory, whole)
    for warning in told:
        yield Notice(str(warning.message), "warning")
    part = recipe.data
    forms = _forms(loaded, stop) if loaded else {}
    test = Comparison(task, part.batch, part.limit, forms, model.inputs_of)
    return Given(model, calibration_inputs(task, model), modules, header["recipe"], header["isa"], recipe.model), test


def _needs_code(program: Program) -> bool:
    """Whether a module stayed whole, which only the model's own code can make."""
    return any(step.op == "module" and step.attrs.get("module") is None for step in program.steps)


def _task(recipe: Recipe) -> Task:
    part = recipe.data
    images = data_registry.load(part.name, transform=transform_of(recipe.model), **part.of_images())
    return classification.Classification(images)


def _forms(loaded: Subject, stop: StopToken) -> Mapping[str, nn.Module]:
    """The fp32 model in the forms of a run's baseline."""
    example = loaded.example
    graph = _quietly(tracing.trace(loaded.model, example), stop).graph
    return fp32_forms(fuse(graph, example, find_pairs(graph))[0])


def _quietly(steps: Generator[Event, Any, T], stop: StopToken) -> T:
    """What a stage returns; what it says was said in the run."""
    while True:
        stop.check()
        try:
            next(steps)
        except StopIteration as end:
            found: T = end.value
            return found
