"""The chosen model as files, each read back by its own runtime and compared with the model that was measured."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from typing import TYPE_CHECKING, Any

from torch import nn

from engine.errors import UsageError
from engine.events.event import Event, Notice
from engine.export.base import ExportContext
from engine.export.making import Comparison, Known, exports, timed
from engine.export.registry import find
from engine.lowering.base import Baseline, Lowering
from engine.planning.plan import Plan
from engine.recipe.recipe import Recipe
from engine.report.figures import BaselineFigures
from engine.report.runtimes import fastest
from engine.runs.measuring import Form
from engine.tasks.base import Forward, Task, forward_of
from engine.tasks.subject import Subject

if TYPE_CHECKING:
    from engine.runs.work import Work


def check(recipe: Recipe, subject: Subject) -> None:
    """Raises UsageError, before any work, for an export that cannot be made of the model."""
    refused = refusal(recipe, subject)
    if refused is not None:
        raise refused


def refusal(recipe: Recipe, subject: Subject, plan: Plan | None = None) -> UsageError | None:
    """Why an export of the recipe could not be made of the model, or of what ``plan`` makes of it; None where all can. Raises
    UsageError for a format that the model's lowering does not have."""
    for name in recipe.export:
        entry = find(name, subject.lowering)
        # A package that is missing is told when the file is to be written: the others are made all the same.
        if entry.missing(entry.writes):
            continue
        refuses = getattr(entry.module(subject.lowering), "refuses", None)
        if refuses is not None and (why := refuses(subject.model, recipe, plan)):
            return UsageError(f"export to {name}: {why}")
    return None


def export(
    run: Work, lowering: Lowering, chosen: Form, before: Baseline, baseline: BaselineFigures
) -> Generator[Event, None, dict[str, Any]]:
    """The report's ``exports``: ``model.safetensors``, which is in the folder already, then what the recipe asks for beside it; and
    ``runtimes``, their times beside those of fp32."""
    recipe, where, subject = run.recipe, run.where, lowering.subject
    names = ("safetensors", *(name for name in recipe.export if name != "safetensors"))
    where.expect(file for name in names for file in find(name, lowering.name).files)
    model = lowering.export_form(chosen.quantized)
    context = context_of(type(lowering), model, subject.task, subject, recipe, recipe.to_yaml(), run.machine.instructions)
    device = "cpu" if lowering.measures_on_cpu else subject.device
    test = Comparison(subject.task, recipe.data.batch, recipe.data.limit, forwards(before.forms, device))
    entries: list[dict[str, Any]] = []
    runners = yield from exports(names, context, where.path, test, run.stop, entries)
    known = Known(baseline.to_dict(), chosen.figures.to_dict())
    found = {"exports": entries, "runtimes": (yield from timed(entries, runners, test, run.stop, known))}
    if sentence := fastest({**found, "workloads": [workload.to_dict() for workload in subject.task.workloads]}):
        yield Notice(sentence)
    return found


def context_of(
    lowering: type[Lowering], model: Any, task: Task, subject: Subject | None, recipe: Recipe, text: str, isa: str
) -> ExportContext:
    """What files of ``model`` are made from. ``subject`` is the fp32 model, None where there is none; ``text`` is the recipe that the
    files name."""
    whole = dict(subject.model.named_modules()) if subject else {}
    return ExportContext(
        model, lowering.export_inputs(task, model), whole, text, isa, recipe.model, lowering.name, subject.source if subject else None,
        lowering.measured(model),
    )  # fmt: skip


def forwards(forms: Mapping[str, nn.Module], device: str) -> dict[str, Forward]:
    """Forms of the fp32 model, which are on ``device``, as functions of batches."""

    def moved(form: nn.Module) -> Forward:
        run = forward_of(form)
        return run if device == "cpu" else lambda batch: run(batch.to(device))

    return {name: moved(form) for name, form in forms.items()}
