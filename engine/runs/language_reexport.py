"""Exports of a finished run of a language model."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

from engine.errors import Cancelled, EngineError
from engine.events.cancellation import StopToken
from engine.events.event import Event, Finished, StageFinished, StageStarted
from engine.export.decoder_exports import Entry, Given
from engine.export.decoder_formats import FORMATS, find
from engine.export.decoder_writing import runtimes, written
from engine.export.finished import check_new, check_unchanged, check_writable, merged, said_of
from engine.kernels.probe import probe
from engine.lowering.files import NAME
from engine.lowering.modules.artifact import read
from engine.paths import save
from engine.recipe.recipe import Recipe
from engine.report.report import Report
from engine.runs.exporting import compared_windows, fp32_logits
from engine.tasks import causal_lm_loading as loading


def export(
    directory: Path, report: Report, recipe: Recipe, names: Sequence[str], stop: StopToken, overwrite: bool
) -> Generator[Event, Any, Report]:
    """Write ``names`` into the folder of the run and enter them in its report. Raises UsageError for a format that language models
    do not have, and EngineError as ``exporting.export`` does. Stopped, it enters what is finished and raises Cancelled."""
    for name in names:
        find(name)
    check_unchanged(directory, report.data)
    asked = [name for name in names if name != "safetensors"]
    if not asked:
        yield Finished(str(directory), report.met, f"{NAME} is there as the run wrote it")
        return report
    if not overwrite:
        check_new(directory, names, FORMATS)
    check_writable(directory)
    start = stop.clock()
    yield StageStarted("export", "Exporting")
    decoder = read(directory / NAME)
    subject = yield from loading.load(loading.settled(recipe), stop, "cpu")
    given = Given(
        decoder,
        compared_windows(subject.task),
        subject.source,
        recipe.to_yaml(),
        probe().instructions,
        recipe.model,
        fp32=fp32_logits(subject),
    )
    made: list[Entry] = []
    try:
        yield from written(asked, given, directory, stop, made)
    except (Cancelled, GeneratorExit, KeyboardInterrupt):
        _entered(directory, report, made)
        raise
    changed = _entered(directory, report, made)
    yield StageFinished("export", round(stop.clock() - start, 3))
    broken = [entry for entry in made if not entry["path"]]
    if broken:
        raise EngineError("; ".join(f"{entry['format']} was not exported: {entry['reason']}" for entry in broken))
    yield Finished(str(directory), changed.met, said_of(made))
    return changed


def _entered(directory: Path, report: Report, made: Sequence[Entry]) -> Report:
    """The report with ``made`` in it, written where there is any."""
    trained = report.data.get("qat") or {}
    native = trained if trained.get("kept") else report.data["ptq"]
    exports = merged(report.data["exports"], made)
    changed = Report({**report.data, "exports": exports, "runtimes": runtimes(exports, report.data["baseline"], native)})
    if made:
        save(directory / "report.json", changed.to_json().encode())
        save(directory / "report.md", changed.to_markdown().encode())
    return changed
