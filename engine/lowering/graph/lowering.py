"""The graph lowering: a traced graph, folded, whose values stay integers from layer to layer."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, fx, nn

from engine.algorithms.patches import PatchMoments
from engine.events.cancellation import StopToken
from engine.events.event import Event, Notice, Table, Weights
from engine.events.progress import quietly
from engine.kernels.choose import kernels_for
from engine.lowering import sensitivity
from engine.lowering.base import Baseline, Lowering, NotWhole, Quantized, Reopened, RunContext, Steps, Trained
from engine.lowering.files import NAME
from engine.lowering.graph import (
    balancing,
    calibration,
    conversion,
    equalizing,
    folding,
    layer_timing,
    qat,
    reconstructing,
    summary,
    tracing,
)
from engine.lowering.graph.artifact import load_network, read, to_bytes
from engine.lowering.graph.fp32_forms import fp32_forms, fp32_size
from engine.lowering.graph.fuse import find_pairs
from engine.lowering.graph.fuse import fuse as fold
from engine.lowering.graph.layer_noise import layer_sqnr
from engine.lowering.graph.layers import layers
from engine.lowering.graph.output_noise import outputs
from engine.lowering.graph.plan import about_device, plan
from engine.lowering.graph.structured import structured
from engine.machine import ranks
from engine.models.memory import channels_last
from engine.numerics.qparams import QParams
from engine.planning import planner
from engine.planning.layer import Layer, Output
from engine.planning.layer_speed import Paces
from engine.planning.plan import Plan
from engine.planning.sensitivity import Candidate
from engine.recipe.changes import with_fold_later, with_slower
from engine.recipe.decisions import Fold
from engine.tasks.base import Batch, Task, forward_of
from engine.tasks.subject import Subject
from engine.training.trainable import TrainingContext

# Training items that exports calibrate and trace with.
_EXPORT_ITEMS = 128


@dataclass(frozen=True)
class Statistics:
    """Of calibration: the grid of each value class, and by layer node what is known of the inputs of those whose method asks."""

    grids: Mapping[str, QParams]
    inputs: Mapping[str, PatchMoments]


@dataclass(frozen=True)
class Converted:
    """``graph`` is the float graph that was rounded, ``start`` that which training goes on from; grids are by value class, weights
    and ``notes`` on their rounding by layer node."""

    graph: fx.GraphModule
    start: fx.GraphModule
    converted: conversion.Converted
    notes: Mapping[str, str]


class GraphLowering(Lowering):
    """Integer layers run on the processor even where a GPU calibrates and trains: torch has no integer convolution for it."""

    name = "graph"
    instead: ClassVar[str | None] = "islands"
    measures_on_cpu = True
    repairs: ClassVar[tuple[str, ...]] = ("bias_correction", "bn_reestimation", "equalize")

    def __init__(self, subject: Subject, run: RunContext, refused: NotWhole | None = None) -> None:
        super().__init__(subject, run, refused)
        self.kernels = kernels_for(run.machine)
        self.example = subject.example
        self._speeds: Paces | None = None
        self._sensitive: Mapping[str, Output] | None = None
        self._repairs: list[dict[str, Any]] = []

    def capture(self) -> Steps[None]:
        run = self.run
        yield from about_device(self.subject.device, self.kernels)
        yield from run.ask("trace", f"Trace {run.recipe.model}?", needed=True)
        traced = yield from run.stage("trace", "Tracing", tracing.tried(self.subject.model, self.example))
        if isinstance(traced, NotWhole):
            raise traced
        # Parts of the time are measured: all ranks are to plan by the same.
        self.traced = replace(traced, profile=ranks.of_first(traced.profile))
        with torch.inference_mode():
            self.subject.task.outputs(forward_of(structured(self.traced.graph))(self.example.first(1)))
        # The graph to quantize; and the fully folded one, which is the baseline, with its pairs and its largest change.
        self.gm, self.folded, self.pairs, self.delta = yield from self._fold()
        self._size = fp32_size(self.folded)

    def _fold(self) -> Steps[tuple[fx.GraphModule, fx.GraphModule, tuple[Any, ...], float]]:
        run, traced, example = self.run, self.traced, self.example
        if (yield from run.ask("analyze", "Analyze for optimization?")) is False:
            yield from self._fold_later()
            return traced.graph, *fold(traced.graph, example, find_pairs(traced.graph))
        pairs = yield from run.stage("analyze", "Looking for layers to fold", folding.analyze(traced.graph))
        later: tuple[str, ...] = ()
        if run.recipe.quantize_first:
            yield Notice("--quantize-first: batch normalization stays for training and is folded at conversion")
        else:
            folding.check(pairs, run.recipe.fold_later)
            answer = yield from run.ask("optimize", "Optimize (fold batch normalization)?")
            if isinstance(answer, Fold):
                later = folding.others(pairs, answer.bns)
                yield from run.change(with_fold_later(run.recipe, later))
            later = run.recipe.fold_later
            if answer is False or (later and not folding.others(pairs, later)):
                yield from self._fold_later()
                yield Notice("not folded now: batch normalization is folded at conversion, as with --quantize-first")
                return traced.graph, *fold(traced.graph, example, pairs)
        timed = run.stop if run.attended else None
        fused, measured, delta = yield from run.stage("fuse", "Folding", folding.fuse(traced, example, pairs, later, timed))
        if later:
            yield Notice(f"folded at conversion: {', '.join(later)}")
            return fused, *fold(traced.graph, example, pairs)
        return traced.graph if run.recipe.quantize_first else fused, fused, measured, delta

    def _fold_later(self) -> Steps[None]:
        """Without the fold the run is one in the other order."""
        yield from self.run.change(self.run.recipe.model_copy(update={"quantize_first": True, "fold_later": ()}))

    def baseline(self) -> Baseline:
        return Baseline(fp32_forms(self.folded), self._size)

    def layers(self) -> Sequence[Layer]:
        return layers(self.gm, self.traced.profile.shares, self._speeds.layers if self._speeds else None, self._outputs())

    def _outputs(self) -> Mapping[str, Output]:
        """The layers that give outputs which the task calls sensitive; measured once."""
        what = self._of_outputs()
        if self._sensitive is None:
            self._sensitive = outputs(self.gm, what, self.example, self.run.machine.activation_bits) if what else {}
        return self._sensitive

    def _of_outputs(self) -> str:
        """What the outputs of the graph are, where the task calls them sensitive; else empty."""
        return self.subject.task.sensitive

    def plan(self) -> Generator[Event, None, Plan]:
        run, profile = self.run, self.traced.profile
        again = self._speeds is not None
        if self._speeds is None:
            proposal = planner.plan(self.layers(), "default", run.recipe.layer_rules(), run.machine.activation_bits)
            timed = layer_timing.timing(self.gm, run.machine, self.kernels, profile.sizes, proposal, run.stop, run.recipe.slower)
            self._speeds = yield from ranks.by_first(timed)
        paces, outside = self._speeds.layers, self._others()
        shares, size, sensitive = profile.shares, self._size, self._outputs()
        steps = plan(self.gm, run.machine, self.kernels, run.recipe, shares, size, again, paces, sensitive, outside)
        found, self.layout = yield from steps
        return found

    def _others(self) -> Sequence[Layer]:
        """Layers that are not in the graph."""
        return ()

    def settle(self, plan: Plan) -> Steps[Plan]:
        """What was measured of the layers has decided once: the recipe that is kept gives the same plan again. Branches of a
        concatenation that are too narrow for its grid are scaled."""
        yield from self._settle_speeds()
        run = self.run
        steps = balancing.balance(self.gm, plan, self.layout, self.subject.task, run.recipe.data.calibration, run.stop)
        self.gm, plan, self.layout, self._branches = yield from steps
        if run.recipe.equalize:
            found = equalizing.equalized(self.gm, plan, self.layout, self.subject.task, run.recipe.data.calibration, run.stop)
            self.gm, self.layout, entry = yield from found
            self._repairs = [*self._repairs, entry] if entry else self._repairs
        return plan

    def _settle_speeds(self) -> Steps[None]:
        run, speeds = self.run, self._speeds
        if run.recipe.preset == "default" and run.recipe.slower is None and speeds is not None and speeds.decided:
            if speeds.stored:
                yield from run.change(with_slower(run.recipe, speeds.stored))
            else:
                run.keep(with_slower(run.recipe, ()))

    def sensitive(self, plan: Plan, only: Mapping[str, Sequence[Candidate]] | None = None) -> sensitivity.Subject:
        graph, device = self.folded, self.subject.device
        if device != "cpu":
            graph = channels_last(copy.deepcopy(graph), device)
        bits = self.run.machine.activation_bits
        sites = sensitivity.sites_of(plan.layers, graph.get_submodule, sensitivity.rounding_error, bits, True, only)
        return sensitivity.Subject(graph, forward_of(structured(graph)), sites, {row.path: row for row in plan.layers}, device)

    @property
    def calibration(self) -> str:
        task = self.subject.task
        return f"Calibrating on {task.calibration_count(self.run.recipe.data.calibration)} {task.calibration_name}"

    def calibrate(self, plan: Plan) -> Generator[Event, None, Statistics]:
        run, part, task = self.run, self.run.recipe.data, self.subject.task
        specs = plan.specs()
        if run.attended:
            nearest = conversion.round_weights(self.gm, self.layout, specs)
            yield Weights(conversion.weight_rows(self.gm, self.layout, specs, nearest))
        inputs = self._watched(plan)
        grids = yield from calibration.calibrate(
            self.gm, self.layout, task, part.calibration, part.batch, self.subject.device, run.stop, run.attended, inputs
        )
        conversion.merge(inputs)
        return Statistics(grids, inputs)

    def kept(self, statistics: Statistics) -> dict[str, Any] | None:
        return {
            "grids": {name: [grid.scale, grid.zero_point, grid.qmax] for name, grid in statistics.grids.items()},
            "inputs": {node: moments.state_dict() for node, moments in statistics.inputs.items()},
        }

    def restored(self, plan: Plan, state: Mapping[str, Any]) -> Statistics | None:
        inputs = self._watched(plan)
        try:
            grids = {name: QParams(*grid) for name, grid in state["grids"].items()}
            if grids.keys() != {c.name for c in self.layout.classes} or inputs.keys() != state["inputs"].keys():
                return None
            for node, moments in inputs.items():
                moments.load_state_dict(state["inputs"][node])
        except (KeyError, TypeError, ValueError, AttributeError):
            return None
        return Statistics(grids, inputs)

    def _watched(self, plan: Plan) -> dict[str, PatchMoments]:
        """What the calibration is to gather for roundings, still empty."""
        task, part = self.subject.task, self.run.recipe.data
        return conversion.watched(self.gm, self.layout, plan.specs(), task.calibration_count(part.calibration))

    def convert(self, plan: Plan, statistics: Statistics) -> Generator[Event, None, Quantized]:
        steps = conversion.round_layers(self.gm, self.layout, plan.specs(), statistics.inputs, self.run.stop)
        rounded = yield from steps
        part = self.run.recipe.data
        rounded, grids = yield from reconstructing.reconstructed(
            self.gm, self.layout, plan.specs(), statistics.grids, rounded, self.subject.task, part.calibration, self.traced.profile.sizes,
            self.run.recipe.seed, self.run.stop, self.run.directory / reconstructing.KEPT,
        )  # fmt: skip
        for ranges, asked in ((True, self.run.recipe.bn_reestimation), (False, self.run.recipe.bias_correction)):
            if asked:
                rounded, entry = yield from reconstructing.corrected(
                    self.gm, self.layout, plan.specs(), grids, rounded, self.subject.task, part.calibration, self.traced.profile.sizes,
                    self.run.stop, ranges,
                )  # fmt: skip
                self._repairs = [*self._repairs, entry]
        return (yield from self._converted(self.gm, rounded, grids))

    def _converted(
        self, graph: fx.GraphModule, rounded: conversion.RoundedWeights, grids: Mapping[str, QParams]
    ) -> Generator[Event, None, Quantized]:
        steps = conversion.convert(rounded.graph, self.layout, grids, rounded.weights, self.kernels, self.example.first(1))
        converted = yield from steps
        model = converted.model
        content = to_bytes(model.program, self.run.recipe.to_yaml(), self.run.machine.instructions)
        stored = len(model.program.layers) - len(model.placement)
        kernels = tuple(sorted({kernel for kernel, _ in model.placement.values()}))
        state = Converted(graph, rounded.graph, converted, rounded.notes)
        return Quantized(model, content, kernels, model.simulated, len(model.placement), stored, state)

    def trainable(self, plan: Plan, quantized: Quantized) -> bool:
        return bool(quantized.state.converted.weights)

    def train(self, plan: Plan, quantized: Quantized, checkpoint: Path) -> Steps[Trained]:
        run, subject, start = self.run, self.subject, quantized.state.converted
        begin = qat.Start(quantized.state.start, self.layout, start.grids, start.weights, self.folded)
        context = TrainingContext(run.stop, "qat", subject.device, checkpoint, self._fingerprint())
        trained = yield from qat.train(begin, subject.task, run.recipe.qat, run.threshold, run.recipe.seed, context)
        fitted = trained.fitted
        return Trained(tuple(fitted.losses), tuple(fitted.values), fitted.epoch, trained)

    def convert_trained(self, plan: Plan, quantized: Quantized, trained: Trained) -> Generator[Event, None, Quantized]:
        found: qat.Trained = trained.state
        rounded = conversion.RoundedWeights(found.weights, quantized.state.notes, found.graph)
        return (yield from self._converted(found.graph, rounded, found.grids))

    def _fingerprint(self) -> str:
        """What a checkpoint must have in common with a run that goes on with it: what was asked, the weights, and the grids."""
        bits = self.run.machine.activation_bits
        return f"{self.run.identity} {self.subject.fingerprint}{'' if bits == 8 else f' {bits}-bit'}"

    def layer_results(self, plan: Plan, quantized: Quantized) -> list[dict[str, Any]]:
        graph, converted = quantized.state.graph, quantized.state.converted
        noise = layer_sqnr(self.gm, graph, self.layout, converted.grids, converted.model, self.subject.task, self.run.stop)
        return summary.layers(plan, self.layout, converted.model, noise, quantized.state.notes)

    def layer_table(self, rows: Sequence[Mapping[str, Any]]) -> Table:
        return summary.layer_table(rows)

    @classmethod
    def reopen(cls, directory: Path, subject: Subject | None) -> Reopened:
        path = directory / NAME
        header = read(path)[1]
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            model = load_network(path, subject.model if subject else None)
        return Reopened(model, header["recipe"], header["isa"], tuple(str(warning.message) for warning in caught))

    @classmethod
    def export_inputs(cls, task: Task, model: Any) -> Batch:
        """The first training items, as one batch. An input that is the same for all items is that of the first batch."""
        parts = [model.inputs_of(part) for part in task.calibration_batches(batch=32, limit=_EXPORT_ITEMS)]
        inputs = _joined(parts, model.per_item)
        count = next((len(x) for x, free in zip(inputs, model.per_item, strict=True) if free), 1)
        call = model.program.call
        args, kwargs = (inputs, {}) if call is None else call.arguments(inputs)
        return Batch(args, kwargs, count=count)

    @classmethod
    def fp32_forms(cls, subject: Subject, stop: StopToken) -> Mapping[str, nn.Module]:
        """Folded, as the baseline of a run is."""
        example = subject.example
        graph = quietly(tracing.trace(subject.model, example), stop).graph
        return fp32_forms(fold(graph, example, find_pairs(graph))[0])

    def graph(self) -> dict[str, Any]:
        return summary.graph(self.traced, self.pairs, self.delta, self.run.recipe)

    def details(self, plan: Plan, statistics: Any, quantized: Quantized) -> dict[str, Any]:
        covered = quantized.state.converted.coverage
        return {
            "operations": summary.operations(self.gm, quantized.model),
            **({"coverage": covered.entry()} if covered else {}),
            **({"repairs": self._repairs} if self._repairs else {}),
            **({"balanced": balancing.entries(self._branches)} if self._branches else {}),
        }


def _joined(parts: Sequence[tuple[Tensor, ...]], per_item: Sequence[bool]) -> tuple[Tensor, ...]:
    """Inputs of several batches as those of one; of batches that differ in more than the number of items those like the first."""

    def sizes(inputs: tuple[Tensor, ...]) -> list[torch.Size]:
        return [x.shape[1:] if free else x.shape for x, free in zip(inputs, per_item, strict=True)]

    alike = [inputs for inputs in parts if sizes(inputs) == sizes(parts[0])]
    columns = zip(*alike, strict=True)
    return tuple(torch.cat(column) if free else column[0] for column, free in zip(columns, per_item, strict=True))
