"""The order of the stages and the decisions between them, nothing else."""

from __future__ import annotations

import contextlib
import time
import traceback
from collections.abc import Generator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import fx

from engine.artifact import NAME, to_bytes
from engine.cancel import StopToken
from engine.errors import Cancelled, EngineError, UsageError
from engine.evaluation import layer_sqnr
from engine.events import Ask, Event, Finished, Measured, Notice, StageFinished, StageStarted, Stopped
from engine.kernels.choose import kernels_for
from engine.kernels.probe import Machine, probe
from engine.quant.layout import Layout, arrange
from engine.recipe import Recipe, Threshold
from engine.report import Report
from engine.rundir import RunDir, find_run, is_running, new_directory
from engine.stages import calibrate, compare, convert, evaluate, fuse, load, plan, qat, summary, trace
from engine.stages.export import parity
from engine.stages.load import Loaded

T = TypeVar("T")
Run = Generator[Event, bool | None, T]

_ROOM = 4  # A run writes the model twice at most, checkpoints with optimizer state included.


def run(recipe: Recipe, out: Path | None, stop: StopToken) -> Run[Report]:
    """Carry out ``recipe`` in ``out`` (a new folder below ``runs_root()`` by default).

    Yields events; answer an ``Ask`` with ``send``. Raises UsageError or EngineError in one line, and Cancelled once the
    state is saved. Before loading has succeeded nothing is written.
    """
    return (yield from _guarded(recipe, out, stop, resumed=False))


def resume(directory: Path, stop: StopToken) -> Run[Report]:
    """Go on with a run that was stopped: the stages before training are done again (seconds), training continues after
    its last whole epoch. Nothing is asked again."""
    directory = find_run(str(directory))
    recipe = Recipe.load(directory / "recipe.yaml")
    if (directory / "report.json").exists():
        raise UsageError(f"{directory} is finished: look at it with `qtui show {directory}`")
    if is_running(directory):
        raise UsageError(f"{directory} is still going: stop it first, or wait for it")
    steps = _guarded(recipe, directory, stop, resumed=True)
    answer: bool | None = None
    thrown: BaseException | None = None
    while True:
        try:
            event = steps.throw(thrown) if thrown else steps.send(answer)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]
        answer, thrown = True, None
        if not isinstance(event, Ask):
            try:
                answer = yield event
            except BaseException as error:
                thrown = error


def _guarded(recipe: Recipe, out: Path | None, stop: StopToken, resumed: bool) -> Run[Report]:
    seen: list[Event] = []
    loading = _kept(_stage("load", f"Loading {recipe.model}", load.load(recipe)), seen)
    try:
        loaded = yield from loading
    except (EngineError, Cancelled):
        raise
    except Exception as error:
        text = f"{type(error).__name__} while loading {recipe.model}: {_line(error)}"
        raise EngineError(f"{text}: {_hint(error)}check the model and the data") from error
    machine = probe()
    recipe = recipe.model_copy(update={"isa": machine.isa})
    weights = sum(t.numel() * t.element_size() for t in loaded.model.state_dict().values())
    where = RunDir(out or new_directory(recipe.model, loaded.data.name), recipe.model, loaded.data.name, _ROOM * weights, resumed)
    job = _Job(recipe, loaded, machine, where, stop)
    try:
        for event in seen:
            where.event(event)
        where.write("recipe.yaml", recipe.to_yaml())
        return (yield from _recorded(job.run(), where))
    except (Cancelled, KeyboardInterrupt, GeneratorExit) as stopped:
        if where.finished:
            raise
        with contextlib.suppress(EngineError):
            where.state("cancelled", f"stopped while {job.doing}")
            where.event(Stopped(str(where.path), job.doing))
        if isinstance(stopped, GeneratorExit):
            raise
        yield Stopped(str(where.path), job.doing)
        raise Cancelled from stopped
    except EngineError as error:
        where.fail(str(error))
        raise
    except Exception as error:
        text = traceback.format_exc()
        kept = where.fail(f"{type(error).__name__} while {job.doing}", text)
        raise EngineError(f"{type(error).__name__} while {job.doing}: {_line(error)}: {_hint(error)}the traceback is in {kept}") from error
    finally:
        where.close()


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:160]


def _hint(error: Exception) -> str:
    if isinstance(error, torch.OutOfMemoryError | MemoryError) or "out of memory" in str(error).lower():
        return "lower data.batch in the recipe; "
    return ""


def _kept(steps: Run[T], seen: list[Event]) -> Run[T]:
    return (yield from _tapped(steps, seen.append))


def _recorded(steps: Run[T], where: RunDir) -> Run[T]:
    return (yield from _tapped(steps, where.event))


def _tapped(steps: Run[T], tap: Any) -> Run[T]:
    """Pass events on and answers back, showing each event to ``tap`` first."""
    answer: bool | None = None
    while True:
        try:
            event = steps.send(answer)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]
        tap(event)
        try:
            answer = yield event
        except BaseException as error:
            steps.throw(error)
            raise


def _stage(name: str, title: str, steps: Generator[Event, Any, T]) -> Run[T]:
    start = time.perf_counter()
    yield StageStarted(name, title)
    result = yield from steps
    yield StageFinished(name, round(time.perf_counter() - start, 3))
    return result


@dataclass(frozen=True)
class _Quantized:
    """A quantized model with its figures and its file's content."""

    converted: convert.Converted
    seen: evaluate.Measurement
    entry: dict[str, Any]
    content: bytes


class _Job:
    """One run's stages, with what they share. ``doing`` is the stage at work, for messages."""

    def __init__(self, recipe: Recipe, loaded: Loaded, machine: Machine, where: RunDir, stop: StopToken) -> None:
        self.recipe, self.loaded, self.machine, self.where, self.stop = recipe, loaded, machine, where, stop
        self.threshold = Threshold.parse(recipe.threshold)
        # Integer layers run on the processor even where a GPU calibrates and trains: torch has no integer convolution for it.
        self.kernels = kernels_for(machine)
        self.doing = "loading"

    def stage(self, name: str, title: str, steps: Generator[Event, Any, T]) -> Run[T]:
        self.doing = name
        self.stop.check()
        return (yield from _stage(name, title, steps))

    def run(self) -> Run[Report]:
        yield from self._ask("trace", f"Trace {self.recipe.model}?", needed=True)
        traced = yield from self.stage("trace", "Tracing", trace.trace(self.loaded.model, self.loaded.example))
        fused, pairs, delta = yield from self._fuse(traced)
        yield from self._ask("quantize", "Quantize?", needed=True)
        start = time.perf_counter()
        graph = traced.graph if self.recipe.quantize_first else fused
        made = yield from self.stage("plan", "Planning", plan.plan(graph, self.machine, self.recipe, traced.time_share))
        layout = arrange(graph, made.specs())
        part = self.recipe.data
        grids = yield from self.stage(
            "calibrate",
            f"Calibrating on {self.loaded.data.count('train', part.calibration)} training images",
            calibrate.calibrate(graph, layout, self.loaded.data, part.calibration, part.batch, self.loaded.device, self.stop),
        )
        weights = convert.round_weights(graph, layout, made.specs())
        converted = convert.convert(graph, layout, grids, weights, self.kernels)
        seconds = time.perf_counter() - start
        fp32 = evaluate.baseline(fused, self.loaded.example, self.stop)
        ptq = yield from self.stage("evaluate", "Measuring on validation and test images", self._measure(converted, fp32, seconds, "ptq"))
        yield Measured("baseline", evaluate.baseline_entry(fp32, ptq.seen))
        yield Measured("ptq", ptq.entry)
        trained, entry = yield from self._train(graph, layout, converted, fused, fp32, ptq)
        chosen, name = (trained, "qat") if trained and entry and entry["kept"] else (ptq, "ptq")
        told = entry["why"] if entry else None
        verdict = compare.verdict(name, chosen.seen, chosen.entry, fp32.size_bytes, self.threshold, told)
        sqnr = layer_sqnr(
            graph if name == "ptq" else fused, layout, chosen.converted.grids, chosen.converted.model, self.loaded.data, self.stop
        )
        layers = summary.layers(made, layout, chosen.converted.model, sqnr)
        yield summary.layer_table(layers)
        exports = yield from self.stage("export", "Exporting", self._export(chosen))
        report = Report({
            "schema": 1, "model": self.recipe.model,
            "data": summary.data(self.loaded.data, self.recipe),
            "environment": summary.environment(self.machine, self.loaded, self.recipe),
            "graph": summary.graph(traced, pairs, delta, self.recipe.quantize_first),
            "layers": layers, "baseline": evaluate.baseline_entry(fp32, ptq.seen), "ptq": ptq.entry, "qat": entry,
            "verdict": verdict, "exports": exports,
        })  # fmt: skip
        report = summary.with_orders(report, self.recipe, self.where.path)
        self.where.write("report.md", report.to_markdown())
        self.where.write("report.json", report.to_json())
        value = chosen.seen.test.value
        self.where.state("finished", verdict["text"], chosen=verdict["chosen"], baseline=chosen.seen.test_baseline.value, value=value)
        yield Finished(str(self.where.path), verdict["met"], verdict["text"])
        return report

    def _ask(self, key: Any, question: str, needed: bool = False) -> Run[bool]:
        self.doing = key
        self.stop.check()
        answer = yield Ask(key, question)
        yes = answer is None or answer
        if needed and not yes:
            raise Cancelled
        return yes

    def _fuse(self, traced: trace.TracedModel) -> Run[tuple[fx.GraphModule, tuple[Any, ...], float]]:
        """The fused graph: the one to quantize, or with ``quantize_first`` the baseline alone."""
        analyzed = yield from self._ask("analyze", "Analyze for optimization?")
        if not analyzed:
            return traced.graph, (), 0.0
        pairs = yield from self.stage("analyze", "Looking for layers to fold", fuse.analyze(traced.graph))
        if self.recipe.quantize_first:
            yield Notice("--quantize-first: batch normalization stays for training and is folded at conversion")
        elif not (yield from self._ask("optimize", "Optimize (fold batch normalization)?")):
            return traced.graph, pairs, 0.0
        return (yield from self.stage("fuse", "Folding", fuse.fuse(traced.graph, self.loaded.example, pairs)))

    def _measure(self, converted: convert.Converted, fp32: evaluate.Baseline, seconds: float, which: str) -> Run[_Quantized]:
        content = to_bytes(converted.model.program, self.recipe.to_yaml(), self.machine.isa)
        seen = yield from evaluate.evaluate(converted.model, fp32, self.loaded.data, self.recipe, self.stop)
        return _Quantized(converted, seen, evaluate.quantized_entry(converted.model, seen, len(content), seconds), content)

    def _train(
        self,
        graph: fx.GraphModule,
        layout: Layout,
        start: convert.Converted,
        fused: fx.GraphModule,
        fp32: evaluate.Baseline,
        ptq: _Quantized,
    ) -> Run[tuple[_Quantized | None, dict[str, Any] | None]]:
        """QAT where it is due and wanted; nothing otherwise."""
        part = self.recipe.qat
        met = ptq.seen.met(self.threshold, "validation") and ptq.seen.met(self.threshold, "test")
        if part.mode == "never" or not start.weights or (met and part.mode == "auto"):
            return None, None
        if part.mode == "auto":
            yield Notice(f"threshold {self.threshold} is not met by PTQ")
        if part.mode == "auto" and not (yield from self._ask("qat", f"Train with quantization (QAT, {part.epochs} epochs)?")):
            return None, None
        began = time.perf_counter()
        recipe, seed = self.recipe, self.recipe.seed
        trained = yield from self.stage("qat", f"Training for {part.epochs} epochs", qat.train(
            graph, layout, start.grids, start.weights, fused, self.loaded.data, part, self.threshold, seed, self.loaded.device,
            self.where.path / "checkpoints" / "qat.pt", recipe.fingerprint(), self.stop,
        ))  # fmt: skip
        seconds = time.perf_counter() - began
        converted = convert.convert(trained.graph, layout, trained.grids, trained.weights, self.kernels)
        done = yield from self.stage("evaluate", "Measuring the trained model", self._measure(converted, fp32, seconds, "qat"))
        kept, why = compare.better(done.seen, ptq.seen, self.threshold)
        fitted = trained.fitted
        entry = {
            "epochs": part.epochs, "best_epoch": fitted.epoch, "loss": list(fitted.losses), "validation_values": list(fitted.values),
            **done.entry, "kept": kept, "why": why,
        }  # fmt: skip
        yield Measured("qat", entry)
        return done, entry

    def _export(self, chosen: _Quantized) -> Generator[Event, None, list[dict[str, Any]]]:
        path = self.where.write(NAME, chosen.content)
        found = parity(path, chosen.converted.model, self.loaded, chosen.entry)
        self.stop.check()
        yield Notice(f"{NAME}: {len(chosen.content) / 1e6:.2f} MB, read back, largest difference {found['parity']['max_abs']:.1e}")
        return [found]


def train(
    model: str, data: str, *, folder: str | None = None, out: Path | None = None, epochs: int | None = None, seed: int = 0,
    device: str = "auto", command: str = "", stop: StopToken | None = None,
) -> Generator[Event, None, Path]:  # fmt: skip
    """Train a baseline; the weights file that was written. Raises UsageError or EngineError."""
    from engine.data import registry as data_registry
    from engine.models.registry import find
    from engine.stages.baseline import schedule_for, train_baseline

    entry = find(model)
    where = load.pick_device(device)
    images = data_registry.load(folder or data)
    load.fits(entry, images)
    schedule = replace(schedule_for(images.name), seed=seed)
    if epochs is not None:
        schedule = replace(schedule, epochs=epochs)
    target = out or Path(f"{model}-{images.name}.safetensors")
    done = yield from train_baseline(entry, images, target, schedule, command, stop or StopToken(), where)
    return done.weights
