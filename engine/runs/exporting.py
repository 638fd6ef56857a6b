"""The chosen model as files, each read back by its own runtime and compared with the model that was measured."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from engine.errors import EngineError, UsageError
from engine.events.event import Event, Notice
from engine.lowering.base import Baseline
from engine.planning.plan import Plan
from engine.recipe.recipe import Recipe
from engine.report.figures import BaselineFigures
from engine.report.runtimes import fastest
from engine.runs.measuring import Form
from engine.tasks.base import Task
from engine.tasks.subject import Subject

if TYPE_CHECKING:
    from engine.lowering.graph.runtime import QuantizedModel
    from engine.runs.work import Work

_ITEMS = 128
# Windows of test text that files are compared on.
COMPARED = 8


def check(recipe: Recipe, subject: Subject) -> None:
    """Raises UsageError, before any work, for an export that cannot be made of the model."""
    if subject.lowering == "modules":
        from engine.runs.language_refusals import check_decoder_exports

        check_decoder_exports(recipe, subject.model)
    else:
        from engine.export.registry import find

        for name in recipe.export:
            find(name)


def refusal(recipe: Recipe, plan: Plan) -> UsageError | None:
    """Why an export of the recipe could not be made of ``plan``; None where all can."""
    if "compressed-tensors" not in recipe.export:
        return None
    from engine.export.compressed_tensors import refuse

    try:
        refuse(plan.layers)
    except EngineError as error:
        return UsageError(f"export to compressed-tensors: {error}")
    return None


def export(
    run: Work, subject: Subject, chosen: Form, before: Baseline, baseline: BaselineFigures
) -> Generator[Event, None, dict[str, Any]]:
    """The report's ``exports``: ``model.safetensors``, which is in the folder already, then what the recipe asks for beside it; and
    ``runtimes``, their times beside those of fp32."""
    if subject.lowering == "modules":
        return (yield from _export_decoder(run, subject, chosen, baseline))
    from engine.export.base import Given
    from engine.export.making import Comparison, exports, timed
    from engine.export.registry import FORMATS

    recipe, where = run.recipe, run.where
    names = ("safetensors", *(name for name in recipe.export if name != "safetensors"))
    where.expect(file for name in names for file in FORMATS[name].files)
    whole = dict(subject.model.named_modules())
    model = chosen.quantized.model
    given = Given(model, calibration_inputs(subject.task, model), whole, recipe.to_yaml(), run.machine.instructions, recipe.model)
    test = Comparison(subject.task, recipe.data.batch, recipe.data.limit, before.forms, model.inputs_of)
    entries: list[dict[str, Any]] = []
    runners = yield from exports(names, given, where.path, test, run.stop, entries)
    found = {"exports": entries, "runtimes": (yield from timed(entries, runners, test, run.stop, chosen.figures.to_dict()))}
    if said := fastest(found):
        yield Notice(said)
    return found


def calibration_inputs(task: Task, model: QuantizedModel) -> Tensor | tuple[Tensor, ...]:
    """The program's inputs of training items, in order, for what an export has to calibrate. An input that is the same for all items is
    that of the first batch."""
    parts = [model.inputs_of(part) for part in task.batches("train", batch=32, limit=_ITEMS)]
    call = model.program.call
    if call is None:
        return torch.cat([inputs[0] for inputs in parts])
    columns = zip(*parts, strict=True)
    return tuple(_joined(column) if about.shape[:1] == (None,) else column[0] for column, about in zip(columns, call.inputs, strict=True))


def _joined(column: Sequence[Tensor]) -> Tensor:
    """The batches as one; where they differ in more than the number of items, those that are like the first."""
    return torch.cat([x for x in column if x.shape[1:] == column[0].shape[1:]])


def _export_decoder(run: Work, subject: Subject, chosen: Form, baseline: BaselineFigures) -> Generator[Event, None, dict[str, Any]]:
    from engine.export.decoder_exports import Given
    from engine.export.decoder_formats import find
    from engine.export.decoder_writing import runtimes, written

    recipe, where = run.recipe, run.where
    names = ("safetensors", *(name for name in recipe.export if name != "safetensors"))
    where.expect(name for form in names for name in find(form).files)
    windows = compared_windows(subject.task)
    decoder = chosen.quantized.state.decoder
    about = (subject.source, recipe.to_yaml(), run.machine.instructions, recipe.model)
    given = Given(decoder, windows, *about, fp32=fp32_logits(subject))
    entries = yield from written(names, given, where.path, run.stop)
    return {"exports": entries, "runtimes": runtimes(entries, baseline.to_dict(), chosen.figures.to_dict())}


def fp32_logits(subject: Subject) -> Callable[[Tensor], Tensor]:
    """The original model's logits of ids (1, T) on the processor."""
    model: Any = subject.model

    def logits(ids: Tensor) -> Tensor:
        with torch.inference_mode():
            found: Tensor = model(input_ids=ids.to(subject.device), use_cache=False).logits
        return found.cpu()

    return logits


def compared_windows(task: Any) -> list[Tensor]:
    """Windows of test text, (T,) each, that files are compared on."""
    return [ids.cpu() for ids, _ in task.parts("test")[:COMPARED]]
