"""A quantized model and fp32 on the task: quality on validation and test, and times of all forms in turns."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass, replace

from engine.events.cancellation import StopToken
from engine.events.event import Event, Notice
from engine.lowering.base import Baseline, Quantized
from engine.machine import ranks
from engine.recipe.recipe import Recipe
from engine.report.figures import BaselineFigures, QuantizedFigures, speedups
from engine.report.verdict import Quality
from engine.tasks.base import Split, Task, forward_of
from engine.tasks.changes import Changes, Watch
from engine.tasks.evaluate import REFERENCE, SplitResult, evaluate
from engine.tasks.timing import Latency, Timing

DECIDING: tuple[Split, ...] = ("validation", "test")
_THIS, _EARLIER = "quantized", "PTQ"


@dataclass(frozen=True)
class Form:
    """A quantized model with its figures, its quality by split, and the test items that it answers otherwise than fp32."""

    quantized: Quantized
    figures: QuantizedFigures
    quality: Mapping[str, Quality]
    changes: Changes | None = None


@dataclass(frozen=True)
class Measured:
    """``earlier`` is the form that was measured before, with the times that it had beside this one."""

    form: Form
    baseline: BaselineFigures
    earlier: Form | None = None


def measure(
    task: Task, quantized: Quantized, baseline: Baseline, recipe: Recipe, stop: StopToken, device: str, seconds: float,
    earlier: Form | None = None,
) -> Generator[Event, None, Measured]:  # fmt: skip
    """``seconds`` is the time that quantization took. Raises EngineError for outputs that are not finite, Cancelled on stop."""
    found: dict[str, Mapping[str, SplitResult]] = {}
    watch = Watch(task)
    for split in DECIDING:
        found[split] = yield from evaluate(
            task, {_THIS: forward_of(quantized.model)}, forward_of(baseline.reference), split, batch=recipe.data.batch, stop=stop,
            limit=recipe.data.limit if split == "test" else None, watch={_THIS: watch} if split == "test" else None,
        )  # fmt: skip
    for told in getattr(quantized.model, "unplanned", ()):
        yield Notice(told, "warning")
    # Figures that stand in one table are of one timing: of two, fp32's alone may differ by more than what is told of the models.
    models = {**baseline.forms, _THIS: quantized.model, **({_EARLIER: earlier.quantized.model} if earlier else {})}
    timings = yield from ranks.by_first(task.time(models, stop, device))
    fp32, kernel = _fastest(task, baseline, timings)
    test = found["test"]
    quality = {split: _quality(results[_THIS], results[REFERENCE], task) for split, results in found.items()}
    this = test[_THIS]
    figures = QuantizedFigures(
        task.metric.name, this.value, this.first.interval, len(quantized.content), _kernels(quantized),
        metrics=this.metrics, details={**quantized.details, **this.details}, error=this.closeness.error(), simulated=quantized.simulated,
        integer_layers=quantized.integer_layers, stored_layers=quantized.stored, seconds=seconds,
        validation={
            "value": quality["validation"].value, "baseline": quality["validation"].baseline, "error": quality["validation"].error,
        },
    )  # fmt: skip
    reference = test[REFERENCE]
    before = BaselineFigures(
        task.metric.name, reference.value, reference.first.interval, baseline.size_bytes, kernel, _times(task, fp32),
        reference.metrics, {**baseline.details, **reference.details, **timings[kernel].details},
    )  # fmt: skip
    form = Form(quantized, _timed(task, figures, timings[_THIS], fp32), quality, watch.changes())
    again = replace(earlier, figures=_timed(task, earlier.figures, timings[_EARLIER], fp32)) if earlier else None
    return Measured(form, before, again)


def _quality(this: SplitResult, reference: SplitResult, task: Task) -> Quality:
    return Quality(
        this.value, reference.value, this.closeness.error(), reference.first.interval, this.samples, this.chance, this.difference_error,
        task.noun,
    )  # fmt: skip


def _kernels(quantized: Quantized) -> str:
    names = list(quantized.kernels)
    if quantized.stored and not (names and quantized.details.get("to_fp16")):
        names.append("torch fp32 on stored integers")
    return ", ".join(names) or "torch fp32"


def _fastest(task: Task, baseline: Baseline, timings: Mapping[str, Timing]) -> tuple[dict[str, Latency], str]:
    """The latency of fp32's fastest form for each workload, and the form that is fastest at the first of them."""
    forms = list(baseline.forms)
    latencies = {w.key: min((timings[name].latencies[w.key] for name in forms), key=lambda latency: latency.p50) for w in task.workloads}
    if not task.workloads:
        return {}, forms[0]
    first = task.workloads[0].key
    return latencies, min(forms, key=lambda name: timings[name].latencies[first].p50)


def _times(task: Task, latencies: Mapping[str, Latency]) -> tuple[dict[str, float], ...]:
    return tuple(latencies[w.key].to_dict() for w in task.workloads)


def _timed(task: Task, figures: QuantizedFigures, timing: Timing, fp32: Mapping[str, Latency]) -> QuantizedFigures:
    return replace(
        figures, latencies=_times(task, timing.latencies), speedup=speedups(task.workloads, fp32, timing.latencies),
        details={**figures.details, **timing.details},
    )  # fmt: skip
