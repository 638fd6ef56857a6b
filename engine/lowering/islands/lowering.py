"""The islands lowering: a model whose root cannot be traced. Its largest traceable submodules are lowered as graphs, by what the graph
lowering does; all else runs as the Python that it is."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, fx, nn

from engine.algorithms.patches import PatchMoments
from engine.errors import EngineError
from engine.events.cancellation import StopToken
from engine.events.event import Event, LayerRow, Notice, Ranges, Table, Weights
from engine.events.progress import Ticker
from engine.lowering import sensitivity
from engine.lowering.base import Baseline, NotWhole, Quantized, Reopened, Steps, Trained
from engine.lowering.files import NAME
from engine.lowering.graph import conversion, summary
from engine.lowering.graph.calibration import calibration_count, observing
from engine.lowering.graph.convert import convert as convert_graph
from engine.lowering.graph.kinds import module_of
from engine.lowering.graph.layer_noise import LayerNoise, Noise
from engine.lowering.graph.lowering import GraphLowering, Statistics
from engine.lowering.graph.profile import Profile
from engine.lowering.graph.profile import profile as profile_graph
from engine.lowering.graph.ranges import Watch
from engine.lowering.graph.reconstructing import KEPT
from engine.lowering.graph.runtime import QuantizedModel
from engine.lowering.graph.trace import UntracedModule
from engine.lowering.graph.tracing import TracedModel, graph_rows, graph_table
from engine.lowering.islands import artifact, coverage, reconstructing, train
from engine.lowering.islands.find import Found, called_with, find, parameters_outside
from engine.lowering.islands.model import IslandsModel, QuantizedIsland
from engine.lowering.islands.observe import ObservedIslands
from engine.lowering.islands.union import Part, Union, union
from engine.lowering.islands.within import IslandForward, WatchingForward, WithForwards
from engine.models.memory import channels_last, laid_out
from engine.numerics.qparams import QParams
from engine.numerics.qtensor import QTensor
from engine.planning.layer import Layer
from engine.planning.plan import Plan
from engine.planning.sensitivity import Candidate
from engine.recipe.capabilities import NOTHING
from engine.tasks.base import Batch, Task, forward_of
from engine.tasks.subject import Subject
from engine.training.trainable import TrainingContext

_NOISE_ITEMS = 64
_OUTSIDE = "outside of the islands, in the model's own forward: fp32"


@dataclass(frozen=True)
class Converted:
    """``parts`` are the float islands that were rounded, ``start`` those that training goes on from; grids are by value class, weights
    and ``notes`` on their rounding by layer node."""

    parts: tuple[Part, ...]
    start: tuple[Part, ...]
    grids: Mapping[str, QParams]
    weights: Mapping[str, QTensor]
    notes: Mapping[str, str]
    covered: coverage.IslandsCoverage


class IslandsLowering(GraphLowering):
    """Plans, folds and rounds one graph that holds all islands, and runs each in its place in the model."""

    name = "islands"
    instead: ClassVar[str | None] = None
    repairs = ()

    def capture(self) -> Steps[None]:
        self.traced = yield from self.run.stage("trace", "Looking for islands", self._islands())
        self.example = self.union.example
        self.gm, self.folded, self.pairs, self.delta = yield from self._fold()
        self._size = _size(self.subject.model)

    def _islands(self) -> Generator[Event, None, TracedModel]:
        root, stop = self.subject.model, self.run.stop
        # Two items tell what is theirs from what is the same for all; what is measured is of one.
        self.item = _items(root, self.subject.example, 1)
        found = find(root, _items(root, self.subject.example, 2), stop)
        if not found.islands:
            raise self.refused or EngineError(f"no part of {type(root).__name__} with layers can be traced: nothing can be quantized")
        found = replace(found, islands=called_with(root, self.item, found.islands))
        self.union = union(found.islands)
        self.measured_parts = coverage.profile(root, found.islands, self.item)
        yield Notice(_said(root, self.refused, found), "warning")
        yield _table(found, self.measured_parts)
        untraced = tuple(leaf for island in found.islands for leaf in island.untraced)
        for leaf in untraced:
            yield Notice(f"{leaf.path} ({leaf.kind}) stays whole, in fp32: {leaf.reason} ({leaf.where})", "warning")
        self._outside = tuple(UntracedModule(one.path, one.kind, one.reason, "") for one in found.outside)
        graph = self.union.graph
        shares = self._profile(graph)
        yield graph_table("graph", "Graph of all islands", graph)
        yield graph_rows("traced", graph, shares.shares)
        delta = max(island.max_abs_delta for island in found.islands)
        return TracedModel(graph, (*untraced, *self._outside), delta, shares)

    def _profile(self, graph: fx.GraphModule) -> Profile:
        """Of each node: its part of the whole model's time, and the size of its value in its island's first call."""
        shares: dict[str, float] = {}
        sizes: dict[str, tuple[int, ...]] = {}
        for island, part in zip(self.union.islands, self.union.parts(graph), strict=True):
            found = profile_graph(part.graph, Batch(*part.call.arguments(island.calls[0])))
            whole = self.measured_parts.time_shares[island.path]
            shares |= {name: share * whole for name, share in found.shares.items() if name in part.names}
            sizes |= {name: size for name, size in found.sizes.items() if name in part.names}
        return Profile(shares, sizes)

    def baseline(self) -> Baseline:
        return Baseline(_forms(self.subject.model, self.union, self.folded), self._size)

    def _of_outputs(self) -> str:
        what = super()._of_outputs()
        return f"result that the model's own forward reads: a {what} is made of it" if what else ""

    def _others(self) -> Sequence[Layer]:
        """The modules with parameters that are in no island."""
        total = sum(p.numel() for p in self.subject.model.parameters()) or 1
        reasons = {leaf.path: f"{_OUTSIDE}; {leaf.reason}" for leaf in self._outside}
        found = []
        for path, module in parameters_outside(self.subject.model, {island.path: island for island in self.union.islands}):
            params = sum(p.numel() for p in module.parameters(recurse=False))
            name = path or type(self.subject.model).__name__
            found.append(
                Layer(name, type(module).__name__, "", params, (), NOTHING, params / total, 0.0, reasons.get(path, _OUTSIDE), ruled=False)
            )
        return found

    def settle(self, plan: Plan) -> Steps[Plan]:
        yield from self._settle_speeds()
        asked = [name for name in GraphLowering.repairs if getattr(self.run.recipe, name)]
        if asked:
            yield Notice(f"{' and '.join(asked)}: of a model in islands nothing is repaired between its layers, left as it is", "warning")
        return plan

    def sensitive(self, plan: Plan, only: Mapping[str, Sequence[Candidate]] | None = None) -> sensitivity.Subject:
        """The whole model as the Python that it is: its normalizations stay beside the layers that they are folded into."""
        root, device = self.subject.model, self.subject.device
        if device != "cpu":
            root = copy.deepcopy(root).to(device)

        def error(row: LayerRow, module: nn.Module, candidate: Candidate) -> Tensor:
            return sensitivity.unfolded_error(self.folded.get_submodule(row.path), row, module, candidate)

        bits = self.run.machine.activation_bits
        sites = sensitivity.sites_of(plan.layers, root.get_submodule, error, bits, True, only)
        return sensitivity.Subject(root, forward_of(root), sites, {row.path: row for row in plan.layers}, device)

    def calibrate(self, plan: Plan) -> Generator[Event, None, Statistics]:
        run, part, task = self.run, self.run.recipe.data, self.subject.task
        specs, total = plan.specs(), calibration_count(task, part.calibration)
        if run.attended:
            nearest = conversion.round_weights(self.gm, self.layout, specs)
            yield Weights(conversion.weight_rows(self.gm, self.layout, specs, nearest))
        inputs = self._watched(plan)
        root, graph = self._on_device(self.gm)
        parts = self.union.parts(graph)
        observed = ObservedIslands(graph, parts, self.layout, run.attended, inputs)
        forwards = {
            p.path: WatchingForward(p.call, p.taken, root.get_submodule(p.path).forward, partial(observed.called, number))
            for number, p in enumerate(parts)
        }
        model, watch = WithForwards(root, forwards), Watch(observed, self.layout) if run.attended else None
        batches = task.calibration_batches(batch=part.batch, limit=part.calibration, device=self.subject.device)

        def observe(batch: Batch) -> None:
            with torch.inference_mode():
                batch = batch.laid_out()
                model(*batch.args, **batch.kwargs)
            observed.settle()

        # How many items of its own an island has in a batch that is another rank's is not known: inputs are then gathered by each.
        shared = None if inputs else observed
        yield from observing(batches, observe, watch, Ticker("calibrate", total, task.unit, clock=run.stop.clock), run.stop, shared)
        if shared is not None:
            shared.merge()
        grids = observed.grids()
        if watch:
            yield Ranges(watch.seen, total, watch.last(grids), final=True)
        return Statistics(grids, inputs)

    def _watched(self, plan: Plan) -> dict[str, PatchMoments]:
        # What an island is given are items of its own: of a head on regions of an image there are many for each of them.
        each = max(max((len(x) for x in inputs if x.dim()), default=1) for island in self.union.islands for inputs in island.calls)
        total = calibration_count(self.subject.task, self.run.recipe.data.calibration)
        return conversion.watched(self.gm, self.layout, plan.specs(), total * each)

    def _on_device(self, gm: fx.GraphModule) -> tuple[nn.Module, fx.GraphModule]:
        device, root = self.subject.device, self.subject.model
        graph = channels_last(copy.deepcopy(gm), device)
        return (root if device == "cpu" else copy.deepcopy(root).to(device)), graph

    def convert(self, plan: Plan, statistics: Statistics) -> Generator[Event, None, Quantized]:
        steps = conversion.round_layers(self.gm, self.layout, plan.specs(), statistics.inputs, self.run.stop)
        rounded = yield from steps
        parts, recipe = self.union.parts(self.gm), self.run.recipe
        rounded, grids = yield from reconstructing.reconstructed(
            self.subject.model, parts, self.union.parts(rounded.graph), self.layout, plan.specs(), statistics.grids, rounded,
            self.subject.task, recipe.data.calibration, recipe.seed, self.run.stop, self.run.directory / KEPT,
        )  # fmt: skip
        start = self.union.parts(rounded.graph)
        return (yield from self._quantized(parts, start, grids, rounded.weights, rounded.notes))

    def _quantized(
        self, parts: Sequence[Part], start: Sequence[Part], grids: Mapping[str, QParams], weights: Mapping[str, QTensor],
        notes: Mapping[str, str],
    ) -> Generator[Event, None, Quantized]:  # fmt: skip
        islands = []
        for part in start:
            whole: dict[str, nn.Module] = {str(n.target): m for n in part.graph.graph.nodes if (m := module_of(n)) is not None}
            program = convert_graph(part.graph, part.of_layout(self.layout), grids, part.of_nodes(weights))
            islands.append(QuantizedIsland(part.path, part.call, part.taken, QuantizedModel(program, self.kernels, whole)))
        model = IslandsModel(self.subject.model, islands)
        covered = coverage.covered(self.measured_parts, self.union.islands, start, model)
        yield Notice(covered.sentence(), "info" if covered.whole.share >= 0.5 else "warning")
        content = artifact.to_bytes(model, self.run.recipe.to_yaml(), self.run.machine.instructions)
        stored = len(model.program.layers) - len(model.placement)
        kernels = tuple(sorted({kernel for kernel, _ in model.placement.values()}))
        state = Converted(tuple(parts), tuple(start), grids, weights, notes, covered)
        return Quantized(model, content, kernels, model.simulated, len(model.placement), stored, state)

    def trainable(self, plan: Plan, quantized: Quantized) -> bool:
        return bool(quantized.state.weights)

    def train(self, plan: Plan, quantized: Quantized, checkpoint: Path) -> Steps[Trained]:
        run, subject, state = self.run, self.subject, quantized.state
        context = TrainingContext(run.stop, "qat", subject.device, checkpoint, self._fingerprint())
        trained = yield from train.train(
            subject.model, self.union.parts(self.folded), state.start, self.layout, state.grids, state.weights, subject.task,
            run.recipe.qat, run.threshold, run.recipe.seed, context,
        )  # fmt: skip
        fitted = trained.fitted
        return Trained(tuple(fitted.losses), tuple(fitted.values), fitted.epoch, trained)

    def convert_trained(self, plan: Plan, quantized: Quantized, trained: Trained) -> Generator[Event, None, Quantized]:
        found: train.Trained = trained.state
        start = [Part(part.path, graph, part.call, part.names) for part, graph in zip(quantized.state.start, found.graphs, strict=True)]
        return (yield from self._quantized(start, start, found.grids, found.weights, quantized.state.notes))

    def layer_results(self, plan: Plan, quantized: Quantized) -> list[dict[str, Any]]:
        state, model = quantized.state, quantized.model
        return summary.layers(plan, self.layout, model, self._noise(state, model), state.notes)

    def _noise(self, state: Converted, model: IslandsModel) -> dict[str, LayerNoise]:
        """Of each unit, with the errors of the layers before it in its island: fp32 gives all islands their inputs."""
        root, exact = self.subject.model, self.union.parts(self.gm)
        sums = [
            Noise(whole.graph, part.graph, part.of_layout(self.layout), part.of_nodes(state.grids), island.model, self.run.stop)
            for whole, part, island in zip(exact, state.parts, model.islands, strict=True)
        ]
        forwards = {
            part.path: WatchingForward(part.call, part.taken, root.get_submodule(part.path).forward, partial(_seen, noise))
            for part, noise in zip(exact, sums, strict=True)
        }
        watched = WithForwards(root, forwards)
        with torch.inference_mode():
            for batch in self.subject.task.batches("validation", batch=self.run.recipe.data.batch, limit=_NOISE_ITEMS):
                self.run.stop.check()
                batch = batch.laid_out()
                watched(*batch.args, **batch.kwargs)
        return {name: value for noise in sums for name, value in noise.found().items()}

    def graph(self) -> dict[str, Any]:
        reason = self.refused.reason if self.refused else ""
        return {**super().graph(), "islands": [island.path for island in self.union.islands], "root": reason}

    def details(self, plan: Plan, statistics: Any, quantized: Quantized) -> dict[str, Any]:
        covered: coverage.IslandsCoverage = quantized.state.covered
        return {"operations": summary.operations(self.gm, quantized.model), "coverage": covered.entry()}

    @classmethod
    def reopen(cls, directory: Path, subject: Subject | None) -> Reopened:
        path = directory / NAME
        header = artifact.header_of(path)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            model = artifact.load(path, subject.model if subject else None)
        return Reopened(model, header["recipe"], header["isa"], tuple(str(warning.message) for warning in caught))

    @classmethod
    def export_inputs(cls, task: Task, model: Any) -> Any:
        return None

    @classmethod
    def fp32_forms(cls, subject: Subject, stop: StopToken) -> Mapping[str, nn.Module]:
        return {"torch fp32": subject.model}


def _seen(noise: Noise, inputs: tuple[torch.Tensor, ...]) -> None:
    noise.add(laid_out(inputs))


def _items(root: nn.Module, example: Batch, count: int) -> Batch:
    """The first items of ``example``, or all of it where the model takes no other number of items."""
    few = example.first(count)
    try:
        with torch.no_grad():
            root(*few.args, **few.kwargs)
    except Exception:
        return example
    return few


def _size(root: nn.Module) -> int:
    """Bytes of the fp32 model as a safetensors file."""
    from safetensors.torch import save

    state = {name: tensor for name, tensor in root.state_dict().items() if isinstance(tensor, torch.Tensor)}
    return len(save({name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.items()}))


def _forms(root: nn.Module, joined: Union, folded: fx.GraphModule) -> dict[str, nn.Module]:
    """The model as it is, and with its islands folded and channels last."""
    parts = joined.parts(channels_last(copy.deepcopy(folded)))
    forwards = {
        part.path: IslandForward(part.call, part.taken, root.get_submodule(part.path).forward, partial(_computed, part.graph))
        for part in parts
    }
    return {"torch fp32": root, "torch fp32, folded islands": WithForwards(root, forwards)}


def _computed(graph: fx.GraphModule, inputs: tuple[torch.Tensor, ...]) -> Any:
    return graph(*laid_out(inputs))


def _said(root: nn.Module, refused: NotWhole | None, found: Found) -> str:
    count = len(found.islands)
    named = ", ".join(island.path for island in found.islands[:4]) + (f" and {count - 4} more" if count > 4 else "")
    why = f" ({refused.reason})" if refused else ""
    return (
        f"{type(root).__name__} cannot be traced as a whole{why}: {count} island{'' if count == 1 else 's'} of it "
        f"{'is' if count == 1 else 'are'} lowered as graphs ({named}), the rest runs as the Python that it is"
    )


def _table(found: Found, measured: coverage.Profile) -> Table:
    macs = measured.macs or 1
    rows = [
        (
            island.path, island.kind, str(len(island.calls)), f"{100 * measured.islands[island.path] / macs:.1f}",
            f"{100 * measured.time_shares[island.path]:.1f}",
        )
        for island in found.islands
    ]  # fmt: skip
    between = sum(one.macs for one in measured.between)
    names = ", ".join(one.path or one.kind for one in measured.between[:3]) or "Python"
    rows.append((f"between: {names}", "", "", f"{100 * between / macs:.1f}", f"{100 * measured.time_between:.1f}"))
    return Table("islands", f"Islands ─ {len(found.islands)}", ("island", "kind", "calls", "MACs %", "fp32 time %"), tuple(rows))
