"""The run of a language model: the order of its stages and the decisions between them."""

from __future__ import annotations

import platform
from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch

from engine.errors import UsageError
from engine.events.cancellation import StopToken
from engine.events.event import (
    Event,
    Finished,
    Graph,
    Judgement,
    Layers,
    Measured,
    Notice,
    Planned,
    Samples,
    Table,
    Weights,
)  # fmt: skip
from engine.export import decoder_artifact as file
from engine.export.artifact import NAME
from engine.export.decoder_exports import Given
from engine.export.decoder_formats import find
from engine.export.decoder_writing import runtimes, written
from engine.kernels.gpu.probe import seen_from
from engine.kernels.matrix.choose import labels
from engine.kernels.probe import Machine
from engine.lowering.modules.exported_graph import exported_rows
from engine.lowering.modules.fused_activations import fuse_activations
from engine.lowering.modules.observe import Inputs, observe
from engine.lowering.modules.progress import MatrixQuantized
from engine.lowering.modules.quantized import QuantizedDecoder
from engine.lowering.modules.rounding import retuned, round_decoder
from engine.lowering.modules.runtime import running
from engine.lowering.modules.table import Look, look, together
from engine.lowering.modules.weight_rows import weight_rows
from engine.models.anatomy import Anatomy, anatomy
from engine.planning.matrices import plan
from engine.planning.plan import Plan
from engine.recipe.changes import with_strategy
from engine.recipe.decisions import Answer, Strategy
from engine.recipe.recipe import Recipe
from engine.recipe.spec import ActivationSpec
from engine.report import language_figures as figures
from engine.report.report import SCHEMA, Report
from engine.runs.language_loading import DECIDING, LoadedLanguage, refusal, tokens
from engine.runs.rundir import RunDir
from engine.runs.work import Run, Work, epochs_of
from engine.tasks.decode_timing import Speed
from engine.tasks.forms_timing import paces
from engine.tasks.language_evaluation import Judged, against
from engine.tasks.samples import sampled
from engine.training.finetune import finetune
from engine.training.settings import schedule_of

# Windows for ranges that are shown; what the methods and static grids need they take from all of them.
LOOK = 32
# Windows of test text that files are compared on.
COMPARED = 8
BLOCKS, CHECKPOINT = "checkpoints/blocks", "checkpoints/qat.pt"


@dataclass(frozen=True)
class _Form:
    """A quantized form with its figures and its file's content; ``told`` is what is known of each matrix."""

    decoder: QuantizedDecoder
    told: dict[str, MatrixQuantized]
    seen: figures.Seen
    entry: dict[str, Any]
    content: bytes
    layers: list[dict[str, Any]]
    model: Any

    def timed(self, speed: Speed, fp32: Speed) -> _Form:
        return replace(self, seen=replace(self.seen, speed=speed, fp32_speed=fp32), entry={**self.entry, **figures.pace(speed, fp32)})


class LanguageJob(Work):
    """The run of a decoder on text."""

    def __init__(self, recipe: Recipe, loaded: LoadedLanguage, machine: Machine, where: RunDir, stop: StopToken, attended: bool = False):
        super().__init__(recipe, machine, where, stop, attended)
        self.loaded = loaded
        self.model = loaded.language.model
        self.kernels = seen_from(machine, loaded.device)
        # The baseline is the best fp32 form.
        fuse_activations(self.model)
        self.said: dict[str, tuple[Samples, ...]] = {}
        self.parts: Anatomy = anatomy(self.model)
        self.size = sum(p.numel() * p.element_size() for p in self.model.parameters())
        self.halves = 2 * loaded.language.params

    def environment(self) -> dict[str, Any]:
        import transformers

        return {
            "torch": torch.__version__, "transformers": transformers.__version__, "python": platform.python_version(),
            "device": self.loaded.device, "isa": self.machine.isa, "vnni": self.machine.vnni, "threads": torch.get_num_threads(),
            "seed": self.recipe.seed, "recipe": self.recipe.fingerprint(),
            "weights": f"{self.loaded.language.source} {self.loaded.fingerprint}",
        }  # fmt: skip

    def run(self) -> Run[Report]:
        yield self.setting()
        yield from self.ask("trace", f"Trace {self.recipe.model}?", needed=True)
        windows = self.loaded.calibration(self.recipe.data.calibration, self.recipe.seed)
        seen = yield from self.stage("trace", "Looking at the modules", self._trace(windows))
        made = yield from self._plan(seen)
        inputs = yield from self.stage(
            "calibrate", f"Calibrating on {min(len(windows), LOOK)} windows of training text", self._calibrate(made, windows)
        )
        decoder, told = yield from self.stage("convert", "Rounding block by block", self._round(made, windows))
        seconds = self.seconds + sum(matrix.seconds for matrix in told.values() if matrix.kept)
        ptq = yield from self.stage("evaluate", "Measuring on validation and test text", self._measure(made, decoder, told, seconds))
        baseline = figures.baseline_entry(ptq.seen, self.size, self.halves)
        yield Measured("baseline", baseline)
        yield Measured("ptq", ptq.entry)
        judged = figures.verdict("ptq", ptq.seen, ptq.entry, self.size, self.threshold, None)
        if self.attended:
            yield from self._judge("ptq", ptq, judged)
        ptq, trained, entry = yield from self._train(made, ptq, windows)
        baseline = figures.baseline_entry(ptq.seen, self.size, self.halves)
        chosen, name = (trained, "qat") if trained and entry and entry["kept"] else (ptq, "ptq")
        verdict = figures.verdict(name, chosen.seen, chosen.entry, self.size, self.threshold, entry["why"] if entry else None)
        if self.attended and trained and entry:
            yield from self._judge("qat", trained, verdict)
        yield self._layer_table(chosen.layers)
        samples = yield from self._samples(name, chosen)
        exported = yield from self.stage("export", "Exporting", self._export(chosen, baseline))
        report = Report({
            "schema": SCHEMA, "model": self.recipe.model, "data": self._data(windows), "environment": self.environment(),
            "graph": self._graph(), "layers": chosen.layers, "baseline": baseline, "ptq": ptq.entry, "qat": entry, "verdict": verdict,
            **exported, "samples": samples, "activations": _channels(inputs),
        })  # fmt: skip
        self.where.write("report.md", report.to_markdown())
        self.where.write("report.json", report.to_json())
        value = chosen.seen.test.it.value
        self.where.state(
            "finished", verdict["text"], chosen=verdict["chosen"], baseline=baseline["value"], value=value, metric="perplexity"
        )
        yield Finished(str(self.where.path), verdict["met"], verdict["text"])
        return report

    def _trace(self, windows: Sequence[torch.Tensor]) -> Generator[Event, None, Look]:
        seen = look(self.model, self.parts, windows[0][None])
        columns = ("module", "kind", "matrix", "shape", "parameters")
        told = [row for row in seen.rows if row.params or row.kwargs or row.time_share]
        cells = [(row.name, row.target, " ".join((row.args, row.kwargs)).strip(), row.shape, f"{row.params:,}") for row in told]
        yield Table("graph", f"Modules ─ {len(seen.rows)}", columns, together(cells, self.parts.blocks))
        rows = seen.rows
        if self.recipe.graph == "export":
            rows = exported_rows(self.model, windows[0][None])
            nodes = tuple((row.opcode, row.name, row.target, row.args, row.shape) for row in rows)
            yield Table("exported", f"torch.export ─ {len(rows)} nodes", ("opcode", "name", "target", "args", "shape"), nodes)
        yield Graph("traced", rows)
        if self.parts.tied_head:
            yield Notice(f"{self.parts.head} shares the matrix of {self.parts.embedding}: it is stored once")
        return seen

    def _plan(self, seen: Look) -> Run[Plan]:
        """The plan that was agreed to, made again for each strategy that is asked for. Raises UsageError where one is agreed to that an
        export of the recipe cannot be made of."""
        answer: Answer = None
        while True:
            made = yield from self.stage("plan", "Planning", self._planned(seen))
            if refused := refusal(self.recipe, made.layers):
                yield Notice(refused, "warning")
            elif isinstance(answer, Strategy) and answer.go:
                return made
            answer = yield from self.ask("quantize", "Quantize?", needed=True)
            if not isinstance(answer, Strategy):
                if refused:
                    raise UsageError(refused)
                return made
            yield from self.change(with_strategy(self.recipe, answer.preset, answer.rules))

    def _planned(self, seen: Look) -> Generator[Event, None, Plan]:
        made = plan(self.model, self.parts, self.recipe.preset, self.recipe.layer_rules(), seen.shares, labels(self.kernels))
        for text in made.warnings:
            yield Notice(text, "warning")
        cells = [(row.path, row.kind, str(row.actual), row.kernel, row.why) for row in made.layers]
        rows = together(cells, self.parts.blocks)
        yield Table("plan", f"Plan ─ {len(made.layers)} layers", ("layer", "kind", "becomes", "on", "why"), rows)
        yield Planned(made.layers, self.recipe.preset, 8, self.size)
        return made

    def _calibrate(self, made: Plan, windows: list[torch.Tensor]) -> Generator[Event, None, dict[str, Inputs]]:
        """Ranges of what each linear layer reads, as the model is: for a person to see, and for the report."""
        if self.attended:
            yield Weights(weight_rows(self.model, made.layers))
        asked = {row.path: row.actual.activations or ActivationSpec(8) for row in made.layers if row.decoder and row.kind != "Embedding"}
        return (yield from observe(self.model, asked, windows[:LOOK], self.loaded.batch, self.stop, counting=self.attended))

    def _round(
        self, made: Plan, windows: list[torch.Tensor]
    ) -> Generator[Event, None, tuple[QuantizedDecoder, dict[str, MatrixQuantized]]]:
        kept = self.where.path / BLOCKS
        decoder, told = yield from round_decoder(self.model, made.layers, windows, self.loaded.batch, self.stop, kept)
        before = sum(matrix.kept for matrix in told.values())
        if before:
            yield Notice(f"{before} of {len(told)} matrices were rounded before the run was stopped, and are taken from {BLOCKS}")
        return decoder, told

    def _measure(
        self, made: Plan, decoder: QuantizedDecoder, told: dict[str, MatrixQuantized], seconds: float, earlier: _Form | None = None
    ) -> Generator[Event, None, _Form]:
        model, placed = running(decoder, self.kernels)
        part = self.recipe.data
        deciding = self.loaded.parts("validation", self.loaded.context)[:DECIDING]
        validation = yield from self._against(model, deciding, self.loaded.context)
        test = yield from self._against(model, self.loaded.parts("test", part.stride, part.limit), part.stride)
        forms = {"fp32": self.model, "quantized": model, **({"PTQ": earlier.model} if earlier else {})}
        speeds = yield from paces(forms, self.loaded.language.context, self.loaded.device, self.stop)
        seen = figures.Seen(validation, test, speeds["quantized"], speeds["fp32"], speeds.get("PTQ"))
        content = file.to_bytes(decoder, self.recipe.to_yaml(), self.machine.instructions)
        entry = figures.quantized_entry(seen, decoder, placed, len(content), self.halves, seconds)
        return _Form(decoder, told, seen, entry, content, figures.layers(made, told, placed), model)

    def _against(self, model: Any, parts: Any, stride: int) -> Generator[Event, None, Judged]:
        def fp32(ids: torch.Tensor) -> torch.Tensor:
            return self.loaded.language.logits(ids)

        def it(ids: torch.Tensor) -> torch.Tensor:
            found: torch.Tensor = model(input_ids=ids, use_cache=False).logits
            return found

        return (yield from against(fp32, it, parts, self.loaded.stride(stride), self.stop))

    def _judge(self, which: Literal["ptq", "qat"], form: _Form, verdict: dict[str, Any]) -> Run[None]:
        yield Layers(which, tuple(form.layers))
        yield from self._samples(which, form)
        yield Judgement(which, verdict)

    def _train(self, made: Plan, ptq: _Form, windows: list[torch.Tensor]) -> Run[tuple[_Form, _Form | None, dict[str, Any] | None]]:
        """PTQ, timed once more where fine-tuning came after it; and fine-tuning where it is due and wanted."""
        blocks = {row.path for row in made.layers if row.decoder == "block"}
        start = {path: matrix.weight for path, matrix in ptq.decoder.matrices.items() if path in blocks}
        met = ptq.seen.met(self.threshold, "validation") and ptq.seen.met(self.threshold, "test")
        if not start or not (yield from self.wants_training("Fine-tune on rounded weights", met)):
            return ptq, None, None
        part = self.recipe.qat
        began = self.stop.clock()
        schedule = schedule_of(part, self.loaded.context, self.recipe.seed)
        mark = f"{self.recipe.fingerprint()} {self.loaded.fingerprint}"
        tuned = yield from self.stage("qat", f"Training for {epochs_of(part.epochs)}", finetune(
            self.model, ptq.decoder.twin, start, self.loaded.data, schedule, stop=self.stop, device=self.loaded.device,
            checkpoint=self.where.path / CHECKPOINT, fingerprint=mark,
        ))  # fmt: skip
        seconds = self.stop.clock() - began
        decoder, told = yield from self.stage("convert", "Rounding what was trained", retuned(
            ptq.decoder, ptq.told, self.model, tuned.model, tuned.weights, windows, self.loaded.batch, self.stop,
        ))  # fmt: skip
        done = yield from self.stage("evaluate", "Measuring the trained model", self._measure(made, decoder, told, seconds, ptq))
        assert done.seen.earlier is not None
        ptq = ptq.timed(done.seen.earlier, done.seen.fp32_speed)
        kept, why = figures.better(done.seen, ptq.seen)
        entry = {
            "epochs": len(tuned.losses), "asked_epochs": part.epochs, "ended_early": len(tuned.losses) < part.epochs,
            "best_epoch": tuned.epoch, "loss": list(tuned.losses), "validation_values": list(tuned.values),
            **done.entry, "kept": kept, "why": why,
        }  # fmt: skip
        yield Measured("baseline", figures.baseline_entry(ptq.seen, self.size, self.halves))
        yield Measured("ptq", ptq.entry)
        yield Measured("qat", entry)
        return ptq, done, entry

    def _samples(self, name: str, form: _Form) -> Run[list[dict[str, Any]]]:
        """What fp32 and the quantized form say after the same words of the test text."""
        if name not in self.said:
            self.said[name] = sampled(self.loaded, {"fp32": self.model, "quantized": form.model}, self.stop)
        found = self.said[name]
        yield from found
        return [{"prompt": sample.prompt, **sample.texts} for sample in found]

    def _layer_table(self, rows: list[dict[str, Any]]) -> Table:
        columns = ("layer", "runs as", "on", "SQNR dB", "params", "fp32 time %")
        return Table("layers", f"Layers ─ {len(rows)}", columns, together(figures.tables(rows), self.parts.blocks))

    def _data(self, windows: Sequence[torch.Tensor]) -> dict[str, Any]:
        part = self.recipe.data
        return {
            "name": self.loaded.data.name, "calibration": len(windows), "calibration_tokens": sum(len(ids) for ids in windows),
            **tokens(self.loaded.data), "unit": "tokens", "context": self.loaded.context,
            "stride": self.loaded.stride(part.stride),
        }  # fmt: skip

    def _graph(self) -> dict[str, Any]:
        return {
            "nodes": sum(1 for _ in self.model.modules()) - 1, "trace_delta": 0.0, "fused": [], "refused": [], "fuse_delta": 0.0,
            "order": "fuse-first", "untraced": [], "blocks": self.parts.depth, "tied_head": self.parts.tied_head,
        }  # fmt: skip

    def _export(self, chosen: _Form, baseline: dict[str, Any]) -> Generator[Event, None, dict[str, Any]]:
        self.where.write(NAME, chosen.content)
        names = ("safetensors", *(name for name in self.recipe.export if name != "safetensors"))
        self.where.expect(name for form in names for name in find(form).files)
        given = self._given(chosen)
        entries = yield from written(names, given, self.where.path, self.stop)
        return {"exports": entries, "runtimes": runtimes(entries, baseline, chosen.entry)}

    def _given(self, chosen: _Form) -> Given:
        windows = [ids.cpu() for ids, _ in self.loaded.parts("test", self.recipe.data.stride)[:COMPARED]]
        return Given(
            chosen.decoder, windows, self.loaded.language.path, self.recipe.to_yaml(), self.machine.instructions, self.recipe.model
        )


def _channels(inputs: dict[str, Inputs]) -> list[dict[str, Any]]:
    """Ranges and outlier channels of what each layer reads."""
    return [
        {"layer": path, "low": it.low, "high": it.high, "outliers": it.outliers, "channels": 0 if it.largest is None else len(it.largest)}
        for path, it in inputs.items()
    ]
