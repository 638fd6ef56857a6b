"""A decoder quantized block by block: each layer is calibrated on what the quantized layers before it put out.

The hidden states of one block, twice where errors are propagated, and the statistics of one group are in memory at a time.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from engine.algorithms.gram import Gram
from engine.algorithms.matrix import quantize_matrix
from engine.algorithms.registry import Method, method
from engine.events.cancellation import StopToken
from engine.events.event import Event, Notice
from engine.events.progress import Ticker
from engine.lowering.modules.block_checkpoint import of_others, read_block, write_block
from engine.lowering.modules.block_linears import Linear, linears
from engine.lowering.modules.capture import Batch, run_block
from engine.lowering.modules.folding import Group, groups_of
from engine.lowering.modules.progress import MatrixQuantized, noted, timed
from engine.lowering.modules.statistics import statistics
from engine.numerics.memory import content
from engine.numerics.qtensor import QTensor
from engine.numerics.scheme import WeightScheme


@dataclass(frozen=True)
class Task:
    """What a matrix is to become: ``method`` is a name of ``registry.METHODS`` or a method of one's own."""

    spec: WeightScheme
    method: str | Method = "gptq"

    @property
    def how(self) -> Method:
        return method(self.method) if isinstance(self.method, str) else self.method


# A block that was kept by another way of choosing between roundings is not taken for one of this way.
ROUNDING = "judged on held-back text"

# None keeps the matrix of that name as it is.
Choose = Callable[[str], Task | None]


def quantize_blocks(
    blocks: Sequence[tuple[str, nn.Module]],
    batches: list[Batch],
    choose: Choose,
    stop: StopToken | None = None,
    checkpoints: Path | None = None,
) -> Generator[Event, None, dict[str, QTensor]]:
    """Quantize the linear layers of ``blocks``, (name, module) in the order they run, and return their packed weights by name.

    The blocks are changed in place: weights become what their integers stand for, norms and biases take up scales and means.
    ``batches`` (from ``capture``) hold the hidden states that enter the first block and are overwritten by those that leave
    each; where errors are propagated, their ``original`` may hold what entered before anything was rounded.
    Yields ``Progress`` in matrices, and ``MatrixQuantized``. With ``checkpoints``, each finished block is
    written there, and a later call with the same model, text and tasks goes on from it bit for bit (a method of one's own is
    known by its functions' addresses: its checkpoints serve the process that wrote them). A ``Notice`` tells of blocks that are
    there for others.
    Raises Cancelled when ``stop`` is set, at the next batch, and EngineError as its parts do.
    """
    stop = stop or StopToken()
    named = [(name, block, linears(block, name)) for name, block in blocks]
    tasks = {m.name: task for _, _, found in named for m in found if (task := choose(m.name)) is not None}
    ticker = Ticker("quantize", len(tasks), "matrices", clock=stop.clock)
    carried = any(task.how.propagation for task in tasks.values())
    if carried:
        for batch in batches:
            if batch.original is None:
                batch.keep_original()
    mark = fingerprint(named, batches, tasks) if checkpoints is not None else ""
    paths = [] if checkpoints is None else [checkpoints / f"block-{index:04d}.safetensors" for index in range(len(named))]
    if others := of_others(paths, mark):
        yield Notice(f"{others} of {len(named)} blocks were kept for another recipe, model or text: rounded again", "warning")
    packed: dict[str, QTensor] = {}
    for index, (_, block, found) in enumerate(named):
        path = paths[index] if paths else None
        before = copy.deepcopy(block) if carried else None
        packed |= yield from quantize_block(Place(block, index, found, batches, tasks, stop), carried, ticker, path, mark)
        if index + 1 < len(named):
            leave(block, before, batches, index, stop)
    return packed


def quantize_block(
    place: Place, carried: bool, ticker: Ticker, path: Path | None = None, mark: str = ""
) -> Generator[Event, None, dict[str, QTensor]]:
    """The packed weights of one block by name, which is changed in place: read from ``path`` where it is there and bears ``mark``, else
    found, and written there. ``carried`` is whether any block's method propagates errors. Yields and raises as ``quantize_blocks``."""
    kept = None if path is None else read_block(path, mark, place.block, place.found)
    if kept is not None:
        done, told = kept
        yield from (replace(note, kept=True) for note in told)
        yield from ticker.advance(len(done))
        return done
    told = []
    done = yield from noted(timed(_one_block(place, carried, ticker), place.stop.clock), told.append)
    if path is not None:
        write_block(path, mark, place.block, place.found, done, told)
    return done


@torch.no_grad()
def leave(block: nn.Module, before: nn.Module | None, batches: list[Batch], index: int, stop: StopToken) -> None:
    """Run ``block``, and the block as it was ``before``, and put what leaves them in the place of what entered."""
    for batch in batches:
        stop.check()
        if before is not None:
            batch.original = run_block(before, batch, index, original=True)
        batch.hidden = run_block(block, batch, index)


@dataclass(frozen=True)
class Place:
    """One block's turn."""

    block: nn.Module
    index: int
    found: list[Linear]
    batches: list[Batch]
    tasks: dict[str, Task]
    stop: StopToken

    def asked(self, group: Group) -> list[Linear]:
        return [linear for linear in group.members if linear.name in self.tasks]

    def inputs_of(self, group: Group, before: nn.Module | None = None, judged: bool = False) -> Gram:
        """``before`` is the block with nothing rounded: drifts are told from it. With ``judged`` some text is held back."""
        original = None
        if before is not None:
            path = next(name for name, module in self.block.named_modules() if module is group.members[0].module)
            original = (before, before.get_submodule(path))
        return statistics(self.block, group, self.batches, self.index, self.stop, original, judged)


def _one_block(place: Place, carried: bool, ticker: Ticker) -> Generator[Event, None, dict[str, QTensor]]:
    wanted = [linear for linear in place.found if linear.name in place.tasks]
    groups: list[Group] = []
    folded: dict[str, str] = {}
    if any(place.tasks[linear.name].how.needs_inputs for linear in wanted):
        scaled = any(place.tasks[linear.name].how.scaling for linear in wanted)
        groups = groups_of(place.block, place.found, place.batches[0], place.index, fold=scaled)
        # All scales of a block are folded before any of its weights is rounded: a fold may change a layer that comes earlier.
        for group in groups:
            folded |= _scale(place, group)
    before = copy.deepcopy(place.block) if carried else None
    done: dict[str, QTensor] = {}
    for group in groups:
        yield from _one_group(place, group, before, folded, done, ticker)
    for linear in wanted:
        if linear.name not in done:
            # An expert that the first batch did not choose: a later one may.
            yield from _one_group(place, Group((linear,), once=False), before, folded, done, ticker)
    return done


def _one_group(
    place: Place,
    group: Group,
    before: nn.Module | None,
    folded: dict[str, str],
    done: dict[str, QTensor],
    ticker: Ticker,
) -> Generator[Event, None, None]:
    asked = place.asked(group)
    needed = any(place.tasks[linear.name].how.needs_inputs for linear in asked)
    judged = any(place.tasks[linear.name].how.judged for linear in asked)
    inputs = place.inputs_of(group, before, judged) if needed else None
    for linear in asked:
        place.stop.check()
        task = place.tasks[linear.name]
        result = quantize_matrix(linear.read(), task.spec, task.how, inputs, linear.bias is not None)
        linear.write(result.weight.dequantize())
        if result.shift is not None and linear.bias is not None:
            linear.bias.data += result.shift
        done[linear.name] = result.weight
        source = folded.get(linear.name)
        yield MatrixQuantized(linear.name, str(task.spec), task.how.title, result.sqnr_db, result.weight.bytes, source, result.note)
        yield from ticker.advance()


def _scale(place: Place, group: Group) -> dict[str, str]:
    """Fold the scale that the members' methods ask for, if any and where it can be; who folded into what, by name. The scale
    of the first method that asks serves the whole group."""
    asked = place.asked(group)
    scaling = next((how.scaling for linear in asked if (how := place.tasks[linear.name].how).scaling), None)
    if scaling is None or group.source is None:
        return {}
    inputs = place.inputs_of(group)
    group.fold(scaling([linear.read() for linear in asked], [place.tasks[linear.name].spec for linear in asked], inputs))
    return {linear.name: group.source.name for linear in asked}


def fingerprint(named: Sequence[tuple[str, nn.Module, Sequence[Linear]]], batches: Sequence[Batch], tasks: dict[str, Task]) -> str:
    """Of the model's weights, the calibration text and the tasks. Two runs that agree in it give the same bits on one machine."""
    digest = hashlib.sha256(ROUNDING.encode())
    for _, block, _ in named:
        for name, tensor in block.state_dict().items():
            digest.update(f"{name} {tuple(tensor.shape)}".encode())
            digest.update(content(tensor))
    for batch in batches:
        digest.update(content(batch.hidden))
    digest.update(repr(sorted((name, str(task.spec), str(task.method)) for name, task in tasks.items())).encode())
    return digest.hexdigest()
