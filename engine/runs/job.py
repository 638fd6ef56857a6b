"""The order of the stages and the decisions between them, nothing else."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from torch import fx

from engine.events.cancellation import StopToken
from engine.events.event import Event, Finished, Judgement, Layers, Measured, Notice, Weights
from engine.export.artifact import NAME, to_bytes
from engine.kernels.choose import kernels_for
from engine.kernels.probe import Machine
from engine.lowering.graph.fuse import find_pairs
from engine.lowering.graph.fuse import fuse as fold
from engine.lowering.graph.layout import Layout
from engine.numerics.qparams import QParams
from engine.numerics.qtensor import QTensor
from engine.planning.layer_speed import Paces
from engine.planning.plan import Plan
from engine.planning.plan import plan as propose
from engine.recipe.changes import with_fold_later, with_slower, with_strategy
from engine.recipe.decisions import Answer, Fold, Strategy
from engine.recipe.recipe import Recipe
from engine.report import verdict as compare
from engine.report.report import Report
from engine.runs.rundir import RunDir
from engine.runs.stages import calibrate, convert, evaluate, fuse, plan, qat, summary, trace
from engine.runs.stages import layer_timing as timing
from engine.runs.stages.export import export
from engine.runs.stages.load import Loaded, absolute
from engine.runs.work import Run, Work, epochs_of
from engine.tasks.evaluation import Profile, layer_sqnr

CHECKPOINT = "checkpoints/qat.pt"


@dataclass(frozen=True)
class _Quantized:
    """A quantized model with its figures and its file's content; ``graph`` is the float graph that was rounded."""

    graph: fx.GraphModule
    converted: convert.Converted
    seen: evaluate.Measurement
    entry: dict[str, Any]
    content: bytes

    def timed(self, times: evaluate.Times) -> _Quantized:
        return replace(self, seen=replace(self.seen, times=times), entry={**self.entry, **evaluate.pace(times)})


class Job(Work):
    """The run of a network on images."""

    def __init__(self, recipe: Recipe, loaded: Loaded, machine: Machine, where: RunDir, stop: StopToken, attended: bool = False) -> None:
        super().__init__(recipe, machine, where, stop, attended)
        self.loaded = loaded
        # Integer layers run on the processor even where a GPU calibrates and trains: torch has no integer convolution for it.
        self.kernels = kernels_for(machine)
        self.layers: dict[str, list[dict[str, Any]]] = {}
        self.paces: Paces | None = None

    def environment(self) -> dict[str, Any]:
        return summary.environment(self.machine, self.loaded, self.recipe)

    def run(self) -> Run[Report]:
        yield self.setting()
        yield from plan.about_device(self.loaded.device, self.kernels)
        yield from self.ask("trace", f"Trace {self.recipe.model}?", needed=True)
        traced = yield from self.stage("trace", "Tracing", trace.trace(self.loaded.model, self.loaded.example))
        graph, fused, pairs, delta = yield from self._fuse(traced)
        made, layout = yield from self._plan(graph, evaluate.fp32_size(fused), traced.profile)
        yield from self._settle()
        weights = convert.round_weights(graph, layout, made.specs())
        if self.attended:
            yield Weights(convert.weight_rows(graph, layout, made.specs(), weights))
        part = self.recipe.data
        grids = yield from self.stage(
            "calibrate",
            f"Calibrating on {self.loaded.data.count('train', part.calibration)} training images",
            calibrate.calibrate(
                graph, layout, self.loaded.data, part.calibration, part.batch, self.loaded.device, self.stop, self.attended
            ),
        )
        converted = yield from self._convert(graph, layout, grids, weights)
        seconds = self.seconds
        fp32 = evaluate.baseline(fused)
        ptq = yield from self.stage("evaluate", "Measuring on validation and test images", self._measure(graph, converted, fp32, seconds))
        baseline = evaluate.baseline_entry(fp32, ptq.seen)
        yield Measured("baseline", baseline)
        yield Measured("ptq", ptq.entry)
        if self.attended:
            yield from self._judge("ptq", graph, made, layout, ptq, fp32, None)
        ptq, trained, entry = yield from self._train(graph, layout, converted, fused, fp32, ptq)
        baseline = evaluate.baseline_entry(fp32, ptq.seen)
        if self.attended and trained and entry:
            yield from self._judge("qat", graph, made, layout, trained, fp32, entry["why"])
        chosen, name = (trained, "qat") if trained and entry and entry["kept"] else (ptq, "ptq")
        told = entry["why"] if entry else None
        verdict = compare.verdict(name, chosen.seen, chosen.entry, fp32.size_bytes, self.threshold, told, self.loaded.device)
        layers = self.layers.get(name) or self._layers(graph, made, layout, chosen)
        yield summary.layer_table(layers)
        exported = yield from self.stage("export", "Exporting", self._export(chosen, fp32))
        report = summary.report(self.recipe, self.loaded, self.machine, self.where.path, {
            "graph": summary.graph(traced, pairs, delta, self.recipe), "layers": layers,
            "baseline": baseline, "ptq": ptq.entry, "qat": entry, "verdict": verdict, **exported,
            "operations": summary.operations(graph, chosen.converted.model),
        })  # fmt: skip
        self.where.write("report.md", report.to_markdown())
        self.where.write("report.json", report.to_json())
        value = chosen.seen.test.value
        self.where.state("finished", verdict["text"], chosen=verdict["chosen"], baseline=chosen.seen.test_baseline.value, value=value)
        yield Finished(str(self.where.path), verdict["met"], verdict["text"])
        return report

    def _layers(self, graph: fx.GraphModule, made: Plan, layout: Layout, it: _Quantized) -> list[dict[str, Any]]:
        noise = layer_sqnr(graph, it.graph, layout, it.converted.grids, it.converted.model, self.loaded.data, self.stop)
        return summary.layers(made, layout, it.converted.model, noise)

    def _judge(
        self, which: Literal["ptq", "qat"], graph: fx.GraphModule, made: Plan, layout: Layout, it: _Quantized, fp32: evaluate.Baseline,
        told: str | None,
    ) -> Run[None]:  # fmt: skip
        """What a person wants to see before the next decision: the layers, and the verdict if the run ended here."""
        self.layers[which] = self._layers(graph, made, layout, it)
        yield Layers(which, tuple(self.layers[which]))
        yield Judgement(which, compare.verdict(which, it.seen, it.entry, fp32.size_bytes, self.threshold, told, self.loaded.device))

    def _settle(self) -> Run[None]:
        """What was measured of the layers has decided once: the recipe that is kept gives the same plan again."""
        if self.recipe.preset != "default" or self.recipe.slower is not None or self.paces is None or not self.paces.decided:
            return
        if self.paces.stored:
            yield from self.change(with_slower(self.recipe, self.paces.stored))
        else:
            self.keep(with_slower(self.recipe, ()))

    def _fuse(self, traced: trace.TracedModel) -> Run[tuple[fx.GraphModule, fx.GraphModule, tuple[Any, ...], float]]:
        """The graph to quantize; and the fully folded one, which is the baseline, with its pairs and its largest change."""
        example = self.loaded.example
        if (yield from self.ask("analyze", "Analyze for optimization?")) is False:
            yield from self._fold_later()
            return traced.graph, *fold(traced.graph, example, find_pairs(traced.graph))
        pairs = yield from self.stage("analyze", "Looking for layers to fold", fuse.analyze(traced.graph))
        later: tuple[str, ...] = ()
        if self.recipe.quantize_first:
            yield Notice("--quantize-first: batch normalization stays for training and is folded at conversion")
        else:
            fuse.check(pairs, self.recipe.fold_later)
            answer = yield from self.ask("optimize", "Optimize (fold batch normalization)?")
            if isinstance(answer, Fold):
                later = fuse.others(pairs, answer.bns)
                yield from self.change(with_fold_later(self.recipe, later))
            later = self.recipe.fold_later
            if answer is False or (later and not fuse.others(pairs, later)):
                yield from self._fold_later()
                yield Notice("not folded now: batch normalization is folded at conversion, as with --quantize-first")
                return traced.graph, *fold(traced.graph, example, pairs)
        timed = self.stop if self.attended else None
        fused, measured, delta = yield from self.stage("fuse", "Folding", fuse.fuse(traced, example, pairs, later, timed))
        if later:
            yield Notice(f"folded at conversion: {', '.join(later)}")
            return fused, *fold(traced.graph, example, pairs)
        return traced.graph if self.recipe.quantize_first else fused, fused, measured, delta

    def _fold_later(self) -> Run[None]:
        """Without the fold the run is one in the other order."""
        yield from self.change(self.recipe.model_copy(update={"quantize_first": True, "fold_later": ()}))

    def _plan(self, graph: fx.GraphModule, size: int, profile: Profile) -> Run[tuple[Plan, Layout]]:
        """The plan that was agreed to, made again for each strategy that is asked for."""
        answer: Answer = None
        while True:
            made = yield from self.stage("plan", "Planning", self._planned(graph, size, profile))
            if isinstance(answer, Strategy) and answer.go:
                return made
            answer = yield from self.ask("quantize", "Quantize?", needed=True)
            if not isinstance(answer, Strategy):
                return made
            yield from self.change(with_strategy(self.recipe, answer.preset, answer.rules))

    def _planned(self, graph: fx.GraphModule, size: int, profile: Profile) -> Run[tuple[Plan, Layout]]:
        """A plan of the recipe as it is by now; the layers are timed before the first one."""
        again = self.paces is not None
        if self.paces is None:
            proposal = propose(graph, self.machine, "default", self.recipe.layer_rules(), profile.shares)
            timed = timing.timing(graph, self.machine, self.kernels, profile.sizes, proposal, self.stop, self.recipe.slower)
            self.paces = yield from timed
        steps = plan.plan(graph, self.machine, self.kernels, self.recipe, profile.shares, size, again, self.paces.layers)
        return (yield from steps)

    def _convert(
        self, graph: fx.GraphModule, layout: Layout, grids: Mapping[str, QParams], weights: Mapping[str, QTensor]
    ) -> Run[convert.Converted]:
        steps = convert.convert(graph, layout, grids, weights, self.kernels)
        return (yield from self.stage("convert", "Converting to integer kernels", steps))

    def _measure(
        self,
        graph: fx.GraphModule,
        converted: convert.Converted,
        fp32: evaluate.Baseline,
        seconds: float,
        earlier: _Quantized | None = None,
    ) -> Run[_Quantized]:
        content = to_bytes(converted.model.program, self.recipe.to_yaml(), self.machine.instructions)
        before = earlier.converted.model if earlier else None
        seen = yield from evaluate.evaluate(converted.model, fp32, self.loaded.data, self.recipe, self.stop, before)
        return _Quantized(graph, converted, seen, evaluate.quantized_entry(converted.model, seen, len(content), seconds), content)

    def _train(
        self,
        graph: fx.GraphModule,
        layout: Layout,
        start: convert.Converted,
        fused: fx.GraphModule,
        fp32: evaluate.Baseline,
        ptq: _Quantized,
    ) -> Run[tuple[_Quantized, _Quantized | None, dict[str, Any] | None]]:
        """PTQ, timed once more where QAT came after it; and QAT where it is due and wanted."""
        met = ptq.seen.met(self.threshold, "validation") and ptq.seen.met(self.threshold, "test")
        if not start.weights or not (yield from self.wants_training("Train with quantization", met)):
            return ptq, None, None
        part = self.recipe.qat
        began = self.stop.clock()
        seed = self.recipe.seed
        trained = yield from self.stage("qat", f"Training for {epochs_of(part.epochs)}", qat.train(
            graph, layout, start.grids, start.weights, fused, self.loaded.data, part, self.threshold, seed, self.loaded.device,
            self.where.path / CHECKPOINT, self._fingerprint(), self.stop,
        ))  # fmt: skip
        seconds = self.stop.clock() - began
        converted = yield from self._convert(trained.graph, layout, trained.grids, trained.weights)
        steps = self._measure(trained.graph, converted, fp32, seconds, ptq)
        done = yield from self.stage("evaluate", "Measuring the trained model", steps)
        assert done.seen.earlier is not None
        ptq = ptq.timed(done.seen.earlier)
        kept, why = compare.better(done.seen, ptq.seen, self.threshold)
        fitted = trained.fitted
        entry = {
            "epochs": len(fitted.losses), "asked_epochs": part.epochs, "ended_early": len(fitted.losses) < part.epochs,
            "best_epoch": fitted.epoch, "loss": list(fitted.losses), "validation_values": list(fitted.values),
            **done.entry, "kept": kept, "why": why,
        }  # fmt: skip
        yield Measured("baseline", evaluate.baseline_entry(fp32, ptq.seen))
        yield Measured("ptq", ptq.entry)
        yield Measured("qat", entry)
        return ptq, done, entry

    def _fingerprint(self) -> str:
        """What a checkpoint must have in common with a run that goes on with it: what was asked, the weights, and the grids."""
        bits = self.machine.activation_bits
        return f"{absolute(self.recipe).fingerprint()} {self.loaded.fingerprint}{'' if bits == 8 else f' {bits}-bit'}"

    def _export(self, chosen: _Quantized, fp32: evaluate.Baseline) -> Generator[Event, None, dict[str, Any]]:
        self.where.write(NAME, chosen.content)
        model, entry = chosen.converted.model, chosen.entry
        return (yield from export(model, self.recipe, self.loaded, self.machine, self.where, entry, fp32.forms, self.stop))
