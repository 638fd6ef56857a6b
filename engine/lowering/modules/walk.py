"""A decoder that is larger than memory, rounded and measured in one walk over its blocks.

Of each block in its turn: its weights are read from their files in float32, the windows that measure are run through it as it is, it is
rounded on what enters it, its integers are written to a file, and the windows are run through the integer kernels of this machine. Then
it is forgotten. What stands outside of the blocks is in memory before the first block and after the last one.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from engine.errors import EngineError
from engine.events.cancellation import StopToken
from engine.events.event import Event, LayerRow
from engine.events.progress import Ticker
from engine.kernels.probe import Machine
from engine.lowering.modules.block_linears import linears
from engine.lowering.modules.blocks import ROUNDING, Place, Task, leave, quantize_block
from engine.lowering.modules.capture import Batch, Returned, capture, embeds, leaving, returned_by, run_block
from engine.lowering.modules.header import about
from engine.lowering.modules.hidden_states import Store
from engine.lowering.modules.observe import batches
from engine.lowering.modules.progress import MatrixQuantized, noted
from engine.lowering.modules.quantized import QuantizedDecoder
from engine.lowering.modules.rounding import alone
from engine.lowering.modules.runtime import Placement, running
from engine.models.anatomy import Anatomy, anatomy, blocks_of
from engine.models.unread import Source, forget, in_block, outside
from engine.numerics.memory import content
from engine.numerics.quantized_matrix import QuantizedMatrix
from engine.numerics.scheme import scheme_of

HIDDEN = "hidden"
# Bytes of a hidden state's number.
_FLOAT = 4


@dataclass(frozen=True)
class Texts:
    """``calibration`` are windows of token ids, 1-D each, run ``batch`` at a time; ``measured`` those that both forms are run on, one by
    one."""

    calibration: Sequence[Tensor]
    batch: int
    measured: Sequence[Tensor] = ()


class Walked(nn.Module):
    """A form of a decoder after a walk: token ids (1, T) that were walked to what the decoder returns for them. Raises EngineError for
    others.

    ``around`` is the decoder with what stands outside of its blocks, made when it is first needed; ``states`` gives what left the last
    block."""

    def __init__(
        self, around: Callable[[], Any], returned: Returned, batches: Mapping[bytes, Batch], states: Callable[[Batch], Tensor | None]
    ) -> None:
        super().__init__()
        self._around, self._returned, self._batches, self._states = around, returned, batches, states
        self._made: Any = None

    def forward(self, input_ids: Tensor, use_cache: bool = False) -> Any:
        batch = self._batches.get(key(input_ids[0]))
        hidden = None if batch is None or len(input_ids) != 1 else self._states(batch)
        if hidden is None:
            raise EngineError("a model that was walked block by block gives the logits of the text of its run alone")
        if self._made is None:
            with torch.inference_mode(False):
                self._made = (self._around(),)
        return leaving(self._made[0], input_ids, hidden, self._returned)


@dataclass
class Rounded:
    """What a walk came to. ``told`` and ``placement`` are of each matrix by its path, ``matrices`` what a file's header says of it;
    ``outside`` are the matrices outside of the blocks, ``files`` those of the blocks in their order. ``fp32`` and ``quantized`` are both
    forms on the windows that measure."""

    told: dict[str, MatrixQuantized] = field(default_factory=dict)
    placement: dict[str, Placement] = field(default_factory=dict)
    matrices: dict[str, Any] = field(default_factory=dict)
    outside: dict[str, QuantizedMatrix] = field(default_factory=dict)
    files: list[Path] = field(default_factory=list)
    fp32: Walked | None = None
    quantized: Walked | None = None


def key(ids: Tensor) -> bytes:
    """What tells a window apart."""
    return content(ids.to(torch.int64))


def walk(
    model: Any, source: Source, rows: Sequence[LayerRow], texts: Texts, machine: Machine, stop: StopToken, place: Path, mark: str = "",
    last: int | None = None,
) -> Generator[Event, None, Rounded]:  # fmt: skip
    """Quantize the decoder ``model``, whose weights ``source`` reads, as ``rows`` of its plan say.

    Files of finished blocks, and of hidden states that do not fit in memory, are made in ``place``; a later call with the same model,
    text, plan and ``mark`` takes finished blocks from there, bit for bit. With ``last`` the walk ends before that block: for
    measurements of the walk itself. Yields Progress and ``MatrixQuantized``. Raises EngineError as its parts do, Cancelled on stop.
    """
    return (yield from _Walk(model, source, rows, texts, machine, stop, place).run(mark, last))


class _Walk:
    def __init__(
        self, model: Any, source: Source, rows: Sequence[LayerRow], texts: Texts, machine: Machine, stop: StopToken, place: Path
    ) -> None:
        self.model, self.source, self.texts, self.machine, self.stop, self.place = model, source, texts, machine, stop, place
        self.parts: Anatomy = anatomy(model)
        self.path, self.blocks = blocks_of(model)
        self.wanted = {row.path: row for row in rows if row.actual.weights is not None}
        self.tasks = {
            row.path: Task(scheme_of(row.actual.weights), row.actual.weights.method)
            for row in self.wanted.values() if row.capabilities.role == "block" and row.actual.weights is not None
        }  # fmt: skip
        self.carried = any(task.how.propagation for task in self.tasks.values())
        self.calibrated = any(task.how.needs_inputs for task in self.tasks.values())
        self.windows = {key(ids): ids for ids in texts.measured}
        self.store = Store(place / HIDDEN, self._hidden_bytes())
        self.measured: dict[bytes, Batch] = {}
        self.entering: list[Batch] = []
        self.digest = hashlib.sha256(ROUNDING.encode())
        self.found = Rounded()

    def run(self, mark: str, last: int | None) -> Generator[Event, None, Rounded]:
        self._identify(mark)
        returned, kernels = yield from self._enter()
        ticker = Ticker("quantize", len(self.tasks), "matrices", clock=self.stop.clock)
        for index in range(len(self.blocks) if last is None else last):
            yield from self._block(index, ticker)
        self.entering.clear()
        if last is None:
            self.found.fp32 = Walked(self._around, returned, self.measured, lambda batch: batch.original)
            self.found.quantized = Walked(lambda: kernels, returned, self.measured, lambda batch: batch.hidden)
        return self.found

    def _hidden_bytes(self) -> int:
        width = int(self.model.get_input_embeddings().weight.shape[1])
        calibrated = sum(map(len, self.texts.calibration)) * (2 if self.carried else 1) * self.calibrated
        return (calibrated + 2 * sum(map(len, self.windows.values()))) * width * _FLOAT

    def _identify(self, mark: str) -> None:
        """Begin the digest whose state tells each block's file from that of another run: it takes in the weights as they are read."""
        tasks = sorted((name, str(task.spec), str(task.method)) for name, task in self.tasks.items())
        self.digest.update(f"{mark} {tasks} {self.texts.batch}".encode())
        for ids in self.texts.calibration if self.calibrated else ():
            self.digest.update(key(ids))

    def _read(self, names: Sequence[str]) -> None:
        self.source.read_into(self.model, names)
        known = dict(self.model.named_parameters())
        for name in names:
            self.digest.update(name.encode())
            self.digest.update(known[name].detach().contiguous().flatten().view(torch.uint8).numpy().data)

    @torch.no_grad()
    def _enter(self) -> Generator[Event, None, tuple[Returned, Any]]:
        """What enters the blocks, of both forms; what stands around the blocks is rounded on the way. What blocks return, and the decoder
        around them on kernels."""
        model, head = self.model, f"{self.parts.head}."
        late = [] if self.parts.tied_head else [name for name in outside(model) if name.startswith(head)]
        self._read([name for name in outside(model) if name not in late])
        self.source.read_into(model, in_block(model, 0))
        returned = self._originals()
        yield from self._alone([path for path in self.wanted if not late or path != self.parts.head])
        if self.calibrated:
            self._calibration(returned)
        forget(self.blocks[0])
        if late:
            self._read(late)
            yield from self._alone([self.parts.head])
        kernels, placed = running(QuantizedDecoder(model, self.found.outside), self.machine)
        self.found.placement |= placed
        forget(model)
        for which, ids in self.windows.items():
            entering, batch = _entering(kernels, ids[None], None, returned), self.measured[which]
            batch.hidden, batch.others = entering.hidden, entering.others
            self.store.share(batch)
        return returned, kernels

    def _originals(self) -> Returned:
        """Take in what enters the blocks of fp32; what blocks return."""
        returned: Returned | None = None
        for which, ids in self.windows.items():
            batch = _entering(self.model, ids[None], None, returned)
            returned = returned or returned_by(self.blocks[0], batch, 0)
            batch.keep_original()
            self.measured[which] = self.store.keep(batch)
        for ids, keep in batches(self.texts.calibration, self.texts.batch) if self.carried else ():
            batch = _entering(self.model, ids, keep, returned)
            batch.keep_original()
            self.entering.append(self.store.keep(batch))
        if returned is None:
            batch = _entering(self.model, self.texts.calibration[0][None], None)
            returned = returned_by(self.blocks[0], batch, 0)
        return returned

    def _calibration(self, returned: Returned) -> None:
        """Take in what enters the blocks where the embeddings are rounded."""
        for number, (ids, keep) in enumerate(batches(self.texts.calibration, self.texts.batch)):
            batch = _entering(self.model, ids, keep, returned)
            if not self.carried:
                self.entering.append(self.store.keep(batch))
                continue
            self.entering[number].hidden, self.entering[number].others = batch.hidden, batch.others
            self.store.share(self.entering[number])

    def _alone(self, paths: Sequence[str]) -> Generator[Event, None, None]:
        """Round what stands outside of the blocks, of ``paths`` those that are tied to nothing before."""
        for path in paths:
            row = self.wanted.get(path)
            if row is None or path in self.tasks:
                continue
            self.stop.check()
            if row.tied is None:
                weight, note = alone(self.model, row)
                self.found.told[path] = note
                yield note
            else:
                weight = self.found.outside[row.tied].weight
            matrix = QuantizedMatrix(weight, row.actual.activations, None, row.tied)
            self.found.outside[path] = matrix
            self.found.matrices[path] = about(matrix)

    def _block(self, index: int, ticker: Ticker) -> Generator[Event, None, None]:
        block, name = self.blocks[index], f"{self.path}.{index}"
        self._read(in_block(self.model, index))
        self._run(block, index, original=True)
        path = self.place / f"block-{index:04d}.safetensors"
        before = copy.deepcopy(block) if self.carried else None
        place = Place(block, index, linears(block, name), self.entering, self.tasks, self.stop, before)
        steps = quantize_block(place, self.carried, ticker, path, self.digest.hexdigest())
        done = yield from noted(steps, lambda note: self.found.told.update({note.name: note}))
        self.found.files.append(path)
        if index + 1 < len(self.blocks):
            leave(block, before, self.entering, index, self.stop)
        del before
        matrices = {path: QuantizedMatrix(weight, self.wanted[path].actual.activations) for path, weight in done.items()}
        self.found.matrices |= {path: about(matrix) for path, matrix in matrices.items()}
        relative = {path.removeprefix(f"{name}."): matrix for path, matrix in matrices.items()}
        kernels, placed = running(QuantizedDecoder(block, relative), self.machine)
        self.found.placement |= {f"{name}.{path}": placement for path, placement in placed.items()}
        forget(block)
        del done, matrices, relative
        self._run(kernels, index)

    @torch.no_grad()
    def _run(self, block: nn.Module, index: int, original: bool = False) -> None:
        """Put what leaves ``block`` in the place of what entered, of the windows that measure."""
        for batch in self.measured.values():
            self.stop.check()
            left = run_block(block, batch, index, original)
            if original:
                batch.original = left
            else:
                batch.hidden = left

    def _around(self) -> Any:
        """The decoder in fp32 behind its blocks."""
        unused = f"{self.parts.embedding}." if embeds(self.model) and not self.parts.tied_head else None
        self.source.read_into(self.model, [name for name in outside(self.model) if unused is None or not name.startswith(unused)])
        return self.model


def _entering(decoder: Any, ids: Tensor, keep: Tensor | None, returned: Returned | None = None) -> Batch:
    blocks = list(blocks_of(decoder)[1])
    (batch,) = capture(lambda ids: decoder(input_ids=ids, use_cache=False), blocks, [(ids, keep)], returned=returned)
    return batch
