"""The modules lowering of a decoder that is larger than memory: one walk over its blocks rounds it and measures both forms."""

from __future__ import annotations

import shutil
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from engine.errors import EngineError, UsageError
from engine.events.event import Event, Graph, Needs, Notice
from engine.kernels.probe import Machine
from engine.kernels.simulate import Simulate
from engine.lowering import sensitivity
from engine.lowering.base import Baseline, Quantized, Reopened, RunContext, Steps, Trained
from engine.lowering.files import file_in
from engine.lowering.modules.artifact import DecoderFile, opened
from engine.lowering.modules.hidden_states import FITTING
from engine.lowering.modules.lowering import BLOCKS, ModulesLowering
from engine.lowering.modules.preflight import TimedBlock, free_in, said, short_of, sizes_of, timed_block
from engine.lowering.modules.progress import MatrixQuantized
from engine.lowering.modules.runtime import Placement
from engine.lowering.modules.table import unrun
from engine.lowering.modules.walk import Rounded, Texts, Walked, walk
from engine.lowering.modules.walked_content import WalkedContent
from engine.machine.memory import available
from engine.models.unread import Source
from engine.planning.plan import Plan
from engine.planning.sensitivity import Candidate
from engine.tasks.base import Batch, Forward, forward_of
from engine.tasks.subject import Subject


@dataclass(frozen=True)
class Streamed:
    """A quantized decoder of which only files and the results on a text are left. ``matrices`` and ``placement`` are as a whole
    decoder's; ``directory`` has its file once the run has written it. What exports take: they read the file tensor by tensor."""

    matrices: Mapping[str, MatrixQuantized]
    placement: Mapping[str, Placement]
    quantized: Walked
    directory: Path
    machine: Machine
    compared: Sequence[Tensor]

    @property
    def file(self) -> DecoderFile:
        """The decoder's file. Raises EngineError where it is not there."""
        return opened(file_in(self.directory))


class StreamedLowering(ModulesLowering):
    """A transformers decoder whose weights are read block by block, on the processor."""

    name = "streamed"
    conversion = "Reading, rounding and measuring block by block"
    calibration = "Calibration is part of the walk over the blocks"

    def __init__(self, subject: Subject, run: RunContext) -> None:
        super().__init__(subject, run)
        assert subject.unread is not None
        self.source: Source = subject.unread
        self._walked: Rounded | None = None
        self._timed: TimedBlock | None = None

    def _look(self) -> Generator[Event, None, None]:
        found = unrun(self.model, self.parts)
        self.shares = found.shares
        yield Graph("traced", found.rows)
        if self.parts.tied_head:
            yield Notice(f"{self.parts.head} shares the matrix of {self.parts.embedding}: it is stored once")

    def baseline(self) -> Baseline:
        form = self._walked.fp32 if self._walked and self._walked.fp32 else self.model
        size = sum(parameter.numel() * parameter.element_size() for parameter in self.model.parameters())
        return Baseline({"torch fp32": form}, size, {"fp16_bytes": self._halves})

    def plan(self) -> Generator[Event, None, Plan]:
        found = yield from super().plan()
        refuse(found)
        needs = self.needs(found, self.run.directory)
        yield needs
        yield Notice(needs.short or needs.text, "warning" if needs.short else "info")
        return found

    def settle(self, plan: Plan) -> Steps[Plan]:
        """Raises EngineError, before anything is read, where memory or disk do not suffice."""
        yield from ()
        if short := self.needs(plan, self.run.directory).short:
            raise EngineError(short)
        return plan

    def needs(self, plan: Plan, place: Path) -> Needs:
        """From shapes, and from one block that is read and multiplied by."""
        recipe, tokens = self.run.recipe, sum(map(len, self._measured()))
        calibration = sum(map(len, self.windows))
        sizes = sizes_of(self.model, self.parts, plan.layers, tokens, calibration)
        disk = sizes.disk(recipe.export, FITTING) - _there(place / BLOCKS)
        free = {"memory": available(), "disk": free_in(place)}
        seconds, unmeasured = self._seconds(plan, tokens, calibration)
        text = said(sizes.memory, disk, seconds, unmeasured, free)
        return Needs(sizes.memory, disk, text, free["memory"], free["disk"], seconds, short_of(sizes.memory, disk, free))

    def _seconds(self, plan: Plan, tokens: int, calibration: int) -> tuple[float, tuple[str, ...]]:
        """About how long the walk takes, and the methods whose own time is not in it. Block 0 is read once in a run."""
        rows = [row for row in plan.layers if row.path.startswith(f"{self.parts.blocks}.0.") and row.actual.weights is not None]
        if self._timed is None:
            self._timed = timed_block(self.model, self.source, rows)
        return self._timed.seconds(self.parts.depth, rows, tokens, calibration)

    def sensitive(self, plan: Plan, only: Mapping[str, Sequence[Candidate]] | None = None) -> sensitivity.Subject | None:
        """None: gradients need the whole model."""
        return None

    def calibrate(self, plan: Plan) -> Generator[Event, None, dict[str, Any]]:
        """Nothing: what methods need they take from each block as it is walked."""
        yield from ()
        return {}

    def _cached(self, quantized: Quantized) -> dict[str, Any]:
        return {}

    def convert(self, plan: Plan, statistics: Any) -> Generator[Event, None, Quantized]:
        run, task = self.run, self.task
        texts = Texts(self.windows, task.windows_at_once, self._measured())
        place = run.directory / BLOCKS
        steps = walk(self.model, self.source, plan.layers, texts, self.machine, run.stop, place, self.subject.fingerprint)
        found = self._walked = yield from steps
        kept = sum(matrix.kept for matrix in found.told.values())
        if kept:
            yield Notice(f"{kept} of {len(found.told)} matrices were rounded before the run was stopped, and are taken from {BLOCKS}")
        assert found.quantized is not None
        content = WalkedContent(self.model, self.source, found, run.recipe.to_yaml(), run.machine.instructions)
        placed = found.placement.values()
        simulated = {label for label, _, _ in placed if label.startswith(Simulate.name)}
        kernels = {label for label, _, stored in placed if not stored} | simulated
        stored = sum(alone for _, _, alone in placed)
        seconds = sum(matrix.seconds for matrix in found.told.values() if matrix.kept)
        state = Streamed(found.told, found.placement, found.quantized, run.directory, self.machine, self._compared())
        details = {"to_fp16": len(content) / self._halves}
        integers = len(found.placement) - stored
        return Quantized(found.quantized, content, tuple(sorted(kernels)), bool(simulated), integers, stored, state, seconds, details)

    def _measured(self) -> list[Tensor]:
        """The windows of validation and test, and those that files are compared on."""
        limit = self.run.recipe.data.limit
        several = (self.task.parts("validation"), self.task.parts("test", limit))
        return [*(ids for parts in several for ids, _ in parts), *self._compared()]

    def _compared(self) -> list[Tensor]:
        return [batch.kwargs["input_ids"][0] for batch in self.task.compared(batch=1)]

    def trainable(self, plan: Plan, quantized: Quantized) -> bool:
        return False

    def train(self, plan: Plan, quantized: Quantized, checkpoint: Path) -> Steps[Trained]:
        raise EngineError("a model that is walked block by block is not trained")

    def convert_trained(self, plan: Plan, quantized: Quantized, trained: Trained) -> Generator[Event, None, Quantized]:
        raise EngineError("a model that is walked block by block is not trained")

    def close(self) -> None:
        shutil.rmtree(self.run.directory / BLOCKS, ignore_errors=True)

    def export_form(self, quantized: Quantized) -> Any:
        return quantized.state

    @classmethod
    def measured(cls, model: Any) -> Forward:
        return forward_of(model.quantized)

    @classmethod
    def export_inputs(cls, task: Any, model: Any) -> Batch | None:
        return None

    @classmethod
    def reopen(cls, directory: Path, subject: Subject | None) -> Reopened:
        raise EngineError(
            f"{directory} is the run of a model that was read block by block: its exports are made with the run, give --export there"
        )


def _there(place: Path) -> int:
    """Bytes of blocks that an earlier run has finished: they are not written again."""
    return sum(path.stat().st_size for path in place.glob("block-*.safetensors"))


def refuse(plan: Plan) -> None:
    """Raises UsageError for what a plan asks of the whole model."""
    for row in plan.layers:
        activations = row.actual.activations
        if activations is not None and not activations.dynamic:
            raise UsageError(
                f"{row.path} has activations on a grid from calibration, which needs the whole model: give a preset with dynamic ones, "
                "such as default or w4a8, or stream: false"
            )
