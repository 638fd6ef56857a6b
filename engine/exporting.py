"""Exports of a run that is finished: from its ``model.safetensors``, recipe and data; its report tells them afterwards."""

from __future__ import annotations

import warnings
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from engine.artifact import NAME, load_quantized, read
from engine.cancel import StopToken
from engine.data import registry as data_registry
from engine.data.base import Data
from engine.errors import EngineError, UsageError
from engine.events import Event, Finished, Notice, StageFinished, StageStarted
from engine.export.base import Given
from engine.export.making import exports, fingerprint
from engine.export.registry import FORMATS, find
from engine.paths import save
from engine.recipe import Recipe
from engine.report import Report
from engine.runtimes import fastest
from engine.stages import load
from engine.stages.export import images

Steps = Generator[Event, Any, Report]


def export(directory: Path, names: Sequence[str], stop: StopToken) -> Steps:
    """Write ``names`` into the folder of a finished run and enter them in its report.

    Raises UsageError for a format that is not known, and EngineError where the model's file is not the run's any more,
    or in the end where a format could not be written; what was there before then stays as it was.
    """
    for name in names:
        find(name)
    if not names:
        raise UsageError(f"no format is named: give some of {', '.join(FORMATS)}")
    report, recipe = Report.load(directory), Recipe.load(directory / "recipe.yaml")
    check_unchanged(directory, report.data)
    start = stop.clock()
    yield StageStarted("export", "Exporting")
    given, data = yield from _given(directory, recipe)
    stop.check()
    # Earlier exports are read back and timed again beside the new ones: figures of another hour do not compare.
    earlier = [name for name in _earlier(directory, report.data) if name not in names and name != "safetensors"]
    written = ("safetensors", *earlier)
    order = (*written, *(name for name in names if name != "safetensors"))
    known: Mapping[str, Any] = next((e for e in report.data["exports"] if e.get("format") == "safetensors"), {})
    made = yield from exports(order, given, directory, data, recipe.data.batch, recipe.data.limit, stop, known, written)
    changed = Report({**report.data, "exports": merged(report.data["exports"], made)})
    save(directory / "report.json", changed.to_json().encode())
    save(directory / "report.md", changed.to_markdown().encode())
    if said := fastest(changed.data):
        yield Notice(said)
    yield StageFinished("export", round(stop.clock() - start, 3))
    broken = [entry for entry in made if not entry["path"]]
    if broken:
        raise EngineError("; ".join(f"{entry['format']} was not exported: {entry['reason']}" for entry in broken))
    yield Finished(str(directory), changed.met, f"exported: {', '.join(entry['path'] for entry in made if entry['format'] in names)}")
    return changed


def _earlier(directory: Path, report: Mapping[str, Any]) -> list[str]:
    """The formats whose files an earlier export left in the folder."""
    named = [str(entry.get("format")) for entry in report["exports"] if isinstance(entry, Mapping) and entry.get("path")]
    return [name for name in named if name in FORMATS and all((directory / file).is_file() for file in FORMATS[name].files)]


def merged(before: Sequence[Mapping[str, Any]], made: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The report's exports: those just made in place of earlier ones. A format that failed now does not undo its earlier file."""
    found = {str(entry.get("format")): dict(entry) for entry in before}
    for entry in made:
        if entry["path"] or not (found.get(entry["format"]) or {}).get("path"):
            found[entry["format"]] = dict(entry)
    return list(found.values())


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


def _given(directory: Path, recipe: Recipe) -> Generator[Event, Any, tuple[Given, Data]]:
    program, header = read(directory / NAME)
    whole: nn.Module | None = None
    if any(step.op == "module" and step.attrs.get("module") is None for step in program.steps):
        # Only a module that stayed whole needs the model's own code.
        loaded = yield from load.load(recipe)
        whole, data = loaded.model, loaded.data
    else:
        part = recipe.data
        data = data_registry.load(part.name, mean=part.mean, std=part.std, size=part.size)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        model = load_quantized(directory, whole)
    for warning in told:
        yield Notice(str(warning.message), "warning")
    modules = dict(whole.named_modules()) if whole is not None else {}
    return Given(model, images(data), modules, header["recipe"], header["isa"], recipe.model), data
