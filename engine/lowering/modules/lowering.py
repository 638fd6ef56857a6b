"""The modules lowering: a decoder as it is, its matrices on integers and floats between them."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from engine.events.event import Event, Graph, Needs, Notice, Planned, Table, Weights
from engine.kernels.gpu.probe import seen_from
from engine.kernels.matrix.choose import labels
from engine.kernels.simulate import Simulate
from engine.lowering import sensitivity
from engine.lowering.base import Baseline, Lowering, Quantized, Reopened, RunContext, Steps, Trained
from engine.lowering.files import NAME
from engine.lowering.modules.artifact import to_bytes
from engine.lowering.modules.coded_cache import calibrated, size_of
from engine.lowering.modules.exported_graph import exported_rows
from engine.lowering.modules.finetune import finetune
from engine.lowering.modules.fused_activations import fuse_activations
from engine.lowering.modules.layer_results import layer_cells, layer_results
from engine.lowering.modules.layers import layers, planned
from engine.lowering.modules.loaded import load, rounding
from engine.lowering.modules.observe import Inputs, observe
from engine.lowering.modules.preflight import free_in, said, short_of, sizes_of
from engine.lowering.modules.progress import MatrixQuantized
from engine.lowering.modules.quantized import QuantizedDecoder, duplicate
from engine.lowering.modules.rotation import Rotated, rotate
from engine.lowering.modules.rounding import retuned, round_decoder
from engine.lowering.modules.runtime import Placement, running
from engine.lowering.modules.table import look, together
from engine.lowering.modules.weight_rows import weight_rows
from engine.machine.memory import available
from engine.models.anatomy import Anatomy
from engine.models.experts import is_expert, separate_experts
from engine.models.recurrent import parts_of
from engine.planning.layer import Layer
from engine.planning.plan import Plan
from engine.planning.sensitivity import Candidate
from engine.recipe.spec import ActivationSpec
from engine.tasks.base import Batch, Forward, forward_of
from engine.tasks.causal_lm import CausalLM
from engine.tasks.causal_lm_streamed import HELD
from engine.tasks.subject import Subject
from engine.training.settings import schedule_of
from engine.training.trainable import TrainingContext

# Windows for ranges that are shown; what the methods and static grids need they take from all of them.
OBSERVED = 32
BLOCKS = "checkpoints/blocks"
_NAMED = 3
# Tokens that rotated weights are tried on.
_TRIED = 64


@dataclass(frozen=True)
class Rounded:
    """A quantized decoder, what is known of each of its matrices, and what computes each of them here."""

    decoder: QuantizedDecoder
    matrices: Mapping[str, MatrixQuantized]
    placement: Mapping[str, Placement]


class ModulesLowering(Lowering):
    """A transformers decoder on the device that it is on, rounded block by block."""

    name = "modules"
    training_question = "Fine-tune on rounded weights"
    conversion = "Rounding block by block"
    conversion_of_trained = "Rounding what was trained"
    unseen: tuple[str, ...] = ()

    def __init__(self, subject: Subject, run: RunContext) -> None:
        super().__init__(subject, run)
        assert isinstance(subject.task, CausalLM)
        self.task: CausalLM = subject.task
        self.model: Any = subject.model
        self.machine = seen_from(run.machine, subject.device)
        # The baseline is the best fp32 form.
        fuse_activations(self.model)
        separate_experts(self.model)
        self.parts: Anatomy = parts_of(self.model)
        # What is measured against; with rotated weights what is rounded is another model.
        self.original: Any = self.model
        self.rotated: Rotated | None = None

    def capture(self) -> Steps[None]:
        recipe = self.run.recipe
        yield from self.run.ask("trace", f"Trace {recipe.model}?", needed=True)
        self.windows: list[Tensor] = self.task.calibration_windows(recipe.data.calibration, recipe.seed)
        if recipe.rotation is not None:
            self.model = duplicate(self.original)
            self.rotated = rotate(self.model, self.windows[0][None, :_TRIED], recipe.seed)
            self.parts = parts_of(self.model)
            yield Notice(f"{self.rotated.text}: the logits are the same")
        yield from self.run.stage("trace", "Looking at the modules", self._look())

    def _look(self) -> Generator[Event, None, None]:
        found = look(self.model, self.parts, self.windows[0][None])
        self.shares = found.shares
        columns = ("module", "kind", "matrix", "shape", "parameters")
        rows = [row for row in found.rows if row.params or row.kwargs or row.time_share]
        cells = [(row.name, row.target, " ".join((row.args, row.kwargs)).strip(), row.shape, f"{row.params:,}") for row in rows]
        yield Table("graph", f"Modules ─ {len(found.rows)}", columns, together(cells, self.parts.blocks))
        shown = found.rows
        if self.run.recipe.graph == "export":
            shown = exported_rows(self.model, self.windows[0][None])
            nodes = tuple((row.opcode, row.name, row.target, row.args, row.shape) for row in shown)
            yield Table("exported", f"torch.export ─ {len(shown)} nodes", ("opcode", "name", "target", "args", "shape"), nodes)
        yield Graph("traced", shown)
        if self.parts.tied_head:
            yield Notice(f"{self.parts.head} shares the matrix of {self.parts.embedding}: it is stored once")

    def baseline(self) -> Baseline:
        parameters = list(self.original.parameters())
        size = sum(p.numel() * p.element_size() for p in parameters)
        return Baseline({"torch fp32": self.original}, size, {"fp16_bytes": self._halves})

    @property
    def _halves(self) -> int:
        """Bytes of the model in fp16, tied matrices counted once."""
        count: int = sum(p.numel() for p in self.original.parameters())
        return 2 * count

    def layers(self) -> Sequence[Layer]:
        return layers(self.model, self.parts, self.shares, labels(self.machine))

    def plan(self) -> Generator[Event, None, Plan]:
        recipe = self.run.recipe
        found = planned(self.layers(), self.parts, recipe.preset, recipe.layer_rules())
        for text in found.warnings:
            yield Notice(text, "warning")
        cells = [(row.path, row.kind, str(row.actual), row.kernel, row.why) for row in found.layers]
        rows = together(cells, self.parts.blocks)
        yield Table("plan", f"Plan ─ {len(found.layers)} layers", ("layer", "kind", "becomes", "on", "why"), rows)
        yield Planned(found.layers, recipe.preset, 8, self.baseline().size_bytes)
        return found

    def needs(self, plan: Plan, place: Path) -> Needs:
        """Of a run that has the whole model in memory: what it holds at once, by experience, and what it writes."""
        sizes = sizes_of(self.model, self.parts, plan.layers, 0, 0)
        memory, free = HELD * self.parts.params, {"memory": available(), "disk": free_in(place)}
        disk = max(sizes.disk(self.run.recipe.export, 0), self.subject.room)
        text = said(memory, disk, None, (), free)
        return Needs(memory, disk, text, free["memory"], free["disk"], None, short_of(memory - self.subject.bytes, disk, free))

    def sensitive(self, plan: Plan, only: Mapping[str, Sequence[Candidate]] | None = None) -> sensitivity.Subject | None:
        sites = sensitivity.sites_of(plan.layers, self.model.get_submodule, sensitivity.matrix_error, only=only)
        rows = {row.path: row for row in plan.layers}
        return sensitivity.Subject(self.model, forward_of(self.model), sites, rows, self.subject.device)

    @property
    def calibration(self) -> str:
        return f"Calibrating on {min(len(self.windows), OBSERVED)} windows of training text"

    def calibrate(self, plan: Plan) -> Generator[Event, None, dict[str, Inputs]]:
        """Ranges of what each linear layer reads, as the model is: for a person to see, and for the report."""
        attended = self.run.attended
        if attended:
            yield Weights(weight_rows(self.model, plan.layers))
        specs = {
            row.path: row.actual.activations or ActivationSpec(8)
            for row in plan.layers if row.capabilities.rounds_inputs
        }  # fmt: skip
        windows = self.windows[:OBSERVED]
        seen = yield from observe(self.model, specs, windows, self.task.windows_at_once, self.run.stop, counting=attended)
        self.unseen = unseen(specs, seen)
        if self.unseen:
            many = len({path.rpartition(".")[0] for path in specs if is_expert(path)})
            named = ", ".join(self.unseen[:_NAMED]) + (" …" if len(self.unseen) > _NAMED else "")
            yield Notice(f"{len(self.unseen)} of {many} experts saw no token of {len(windows)} calibration windows: {named}", "warning")
        return seen

    def convert(self, plan: Plan, statistics: Any) -> Generator[Event, None, Quantized]:
        checkpoints = self.run.directory / BLOCKS
        batch = self.task.windows_at_once
        decoder, matrices = yield from round_decoder(self.model, plan.layers, self.windows, batch, self.run.stop, checkpoints)
        kept = sum(matrix.kept for matrix in matrices.values())
        if kept:
            yield Notice(f"{kept} of {len(matrices)} matrices were rounded before the run was stopped, and are taken from {BLOCKS}")
        return self._running(self._with_cache(decoder), matrices)

    def _with_cache(self, decoder: QuantizedDecoder) -> QuantizedDecoder:
        """With the cache of keys and values that the recipe asks for, its steps from calibration text."""
        asked = self.run.recipe.cache
        if asked is None:
            return decoder
        windows = self.windows[:OBSERVED]
        return replace(decoder, cache=calibrated(decoder.twin, asked.spec(), windows, self.task.windows_at_once, self.run.stop))

    def _running(self, decoder: QuantizedDecoder, matrices: Mapping[str, MatrixQuantized]) -> Quantized:
        model, placement = running(decoder, self.machine)
        content = to_bytes(decoder, self.run.recipe.to_yaml(), self.run.machine.instructions)
        simulated = {label for label, _, _ in placement.values() if label.startswith(Simulate.name)}
        kernels = {label for label, _, stored in placement.values() if not stored} | simulated
        stored = sum(alone for _, _, alone in placement.values())
        seconds = sum(matrix.seconds for matrix in matrices.values() if matrix.kept)
        state = Rounded(decoder, matrices, placement)
        details = {"to_fp16": len(content) / self._halves}
        return Quantized(model, content, tuple(sorted(kernels)), bool(simulated), len(placement) - stored, stored, state, seconds, details)

    def _in_blocks(self, plan: Plan, quantized: Quantized) -> dict[str, Any]:
        """The integers of the matrices inside of blocks, by path: those that are trained."""
        blocks = {row.path for row in plan.layers if row.capabilities.role == "block"}
        return {path: matrix.weight for path, matrix in quantized.state.decoder.matrices.items() if path in blocks}

    def trainable(self, plan: Plan, quantized: Quantized) -> bool:
        return bool(self._in_blocks(plan, quantized))

    def train(self, plan: Plan, quantized: Quantized, checkpoint: Path) -> Steps[Trained]:
        run, task, state = self.run, self.task, quantized.state
        schedule = schedule_of(run.recipe.qat, task.context, run.recipe.seed)
        fingerprint = f"{run.recipe.fingerprint()} {self.subject.fingerprint}"
        context = TrainingContext(run.stop, "qat", self.subject.device, checkpoint, fingerprint)
        weights = self._in_blocks(plan, quantized)
        tuned = yield from finetune(self.model, state.decoder.twin, weights, task.text, schedule, context)
        return Trained(tuple(tuned.losses), tuple(tuned.values), tuned.epoch, tuned)

    def convert_trained(self, plan: Plan, quantized: Quantized, trained: Trained) -> Generator[Event, None, Quantized]:
        state, tuned, batch = quantized.state, trained.state, self.task.windows_at_once
        decoder, matrices = yield from retuned(
            state.decoder, state.matrices, self.model, tuned.model, tuned.weights, self.windows, batch, self.run.stop
        )
        return self._running(self._with_cache(decoder), matrices)

    def layer_results(self, plan: Plan, quantized: Quantized) -> list[dict[str, Any]]:
        return layer_results(plan, quantized.state.matrices, quantized.state.placement)

    def layer_table(self, rows: Sequence[Mapping[str, Any]]) -> Table:
        columns = ("layer", "runs as", "on", "SQNR dB", "params", "fp32 time %")
        return Table("layers", f"Layers ─ {len(rows)}", columns, together(layer_cells(rows), self.parts.blocks))

    def export_form(self, quantized: Quantized) -> QuantizedDecoder:
        """The integers and the model in floats that they stand for: what runs here may be on another device."""
        decoder: QuantizedDecoder = quantized.state.decoder
        return decoder

    @classmethod
    def reopen(cls, directory: Path, subject: Subject | None) -> Reopened:
        loaded = load(directory / NAME)
        return Reopened(loaded.decoder, loaded.recipe, loaded.isa)

    @classmethod
    def measured(cls, model: Any) -> Forward:
        """In float32 with activations rounded as the recipe says."""

        def forward(batch: Batch) -> Any:
            with rounding(model) as twin:
                return twin(*batch.args, **batch.kwargs)

        return forward

    def graph(self) -> dict[str, Any]:
        return {
            "nodes": sum(1 for _ in self.model.modules()) - 1, "trace_delta": 0.0, "fused": [], "refused": [], "fuse_delta": 0.0,
            "order": "fuse-first", "untraced": [], "blocks": self.parts.depth, "tied_head": self.parts.tied_head,
        }  # fmt: skip

    def details(self, plan: Plan, statistics: Any, quantized: Quantized) -> dict[str, Any]:
        return {
            "activations": _channels(statistics), **({"unseen_experts": list(self.unseen)} if self.unseen else {}),
            **self._cached(quantized), **({"rotation": asdict(self.rotated)} if self.rotated else {}),
        }  # fmt: skip

    def _cached(self, quantized: Quantized) -> dict[str, Any]:
        """What a token of context takes; nothing where keys and values are floats."""
        decoder: QuantizedDecoder = quantized.state.decoder
        if decoder.cache is None:
            return {}
        return {"cache": {"spec": str(decoder.cache.spec), **asdict(size_of(decoder.twin, decoder.cache))}}


def unseen(layers: Iterable[str], seen: Mapping[str, Inputs]) -> tuple[str, ...]:
    """The experts, by their paths, of whose ``layers`` none was reached by calibration."""
    experts = dict.fromkeys(path.rpartition(".")[0] for path in layers if is_expert(path))
    known = {path.rpartition(".")[0] for path in seen}
    return tuple(path for path in experts if path not in known)


def _channels(inputs: Mapping[str, Inputs]) -> list[dict[str, Any]]:
    """Ranges and outlier channels of what each layer reads."""
    return [
        {
            "layer": path, "low": found.low, "high": found.high, "outliers": found.outliers,
            "channels": 0 if found.largest is None else len(found.largest),
        }
        for path, found in inputs.items()
    ]  # fmt: skip
