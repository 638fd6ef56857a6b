"""A decoder quantized block by block: each layer is calibrated on what the quantized layers before it put out.

The hidden states of one block, twice where errors are propagated, and the statistics of one group are in memory at a time.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from engine.algorithms.gram import Gram, output_error
from engine.algorithms.matrix import Quantized, quantize_matrix
from engine.algorithms.registry import Method, method
from engine.events.cancellation import StopToken
from engine.events.event import Event, Notice
from engine.events.progress import Ticker
from engine.lowering.modules.block_checkpoint import of_others, read_block, write_block
from engine.lowering.modules.block_linears import Linear, linears
from engine.lowering.modules.block_tuning import tune
from engine.lowering.modules.capture import Batch, run_block
from engine.lowering.modules.folding import Group, groups_of
from engine.lowering.modules.progress import MatrixQuantized, noted, timed
from engine.lowering.modules.statistics import statistics
from engine.machine import ranks
from engine.numerics.memory import content
from engine.numerics.qtensor import QTensor
from engine.numerics.scheme import WeightScheme
from engine.numerics.sqnr import sqnr_db


@dataclass(frozen=True)
class Task:
    """What a matrix is to become: ``method`` is a name of ``registry.METHODS`` or a method of one's own."""

    spec: WeightScheme
    method: str | Method = "gptq"

    @property
    def how(self) -> Method:
        return method(self.method) if isinstance(self.method, str) else self.method


# A block that was kept by another way of choosing between roundings is not taken for one of this way.
ROUNDING = "judged on held-back text, sums in float64"

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
    carried = any(task.how.carries for task in tasks.values())
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
        packed |= yield from quantize_block(Place(block, index, found, batches, tasks, stop, before), carried, ticker, path, mark)
        if index + 1 < len(named):
            leave(block, before, batches, index, stop)
    return packed


def _kept(path: Path, mark: str, place: Place) -> tuple[dict[str, QTensor], list[MatrixQuantized]] | None:
    """``read_block``, which rank 0 does for all."""
    block, found = place.block, place.found
    if not ranks.several():
        return read_block(path, mark, block, found)

    def read() -> Any:
        kept = read_block(path, mark, block, found)
        return None if kept is None else (kept, {name: tensor.cpu() for name, tensor in block.state_dict().items()})

    there = ranks.called_by_first(read)
    if there is None:
        return None
    kept: tuple[dict[str, QTensor], list[MatrixQuantized]] = there[0]
    block.load_state_dict(there[1])
    return kept


def quantize_block(
    place: Place, carried: bool, ticker: Ticker, path: Path | None = None, mark: str = ""
) -> Generator[Event, None, dict[str, QTensor]]:
    """The packed weights of one block by name, which is changed in place: read from ``path`` where it is there and bears ``mark``, else
    found, and written there. ``carried`` is whether any block's method propagates errors. Yields and raises as ``quantize_blocks``."""
    kept = None if path is None else _kept(path, mark, place)
    if kept is not None:
        done, told = kept
        yield from (replace(note, kept=True) for note in told)
        yield from ticker.advance(len(done))
        return done
    told = []
    done = yield from noted(timed(_one_block(place, carried, ticker), place.stop.clock), told.append)
    if path is not None and ranks.is_first():
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
    """One block's turn. Where errors are carried, ``before`` is a copy of the block as it was."""

    block: nn.Module
    index: int
    found: list[Linear]
    batches: list[Batch]
    tasks: dict[str, Task]
    stop: StopToken
    before: nn.Module | None = None

    def asked(self, group: Group) -> list[Linear]:
        return [linear for linear in group.members if linear.name in self.tasks]

    def single(self, groups: Sequence[Group]) -> list[Group]:
        """``groups`` without the layers that are learned together; those of nothing else are left out."""
        kept = [replace(group, members=tuple(one for one in self.asked(group) if not self.tasks[one.name].how.tuned)) for group in groups]
        return [group for group in kept if group.members]

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
    # Where nothing was folded the copy is the block still: a second one would be memory for nothing.
    before = (place.before if place.before is not None and not folded else copy.deepcopy(place.block)) if carried else None
    done: dict[str, QTensor] = {}
    for group in place.single(groups):
        yield from _one_group(place, group, before, folded, done, ticker)
    yield from _tuned(place, groups, before, done, ticker)
    for linear in wanted:
        if linear.name not in done:
            # An expert that the first batch did not choose: a later one may.
            yield from _one_group(place, Group((linear,), once=False), before, folded, done, ticker)
    return done


def _tuned(
    place: Place, groups: Sequence[Group], before: nn.Module | None, done: dict[str, QTensor], ticker: Ticker
) -> Generator[Event, None, None]:
    """The layers that are learned together, after the others of the block."""
    wanted = [linear for group in groups for linear in group.members if linear.name in place.tasks and place.tasks[linear.name].how.tuned]
    if not wanted:
        return
    assert before is not None, "a method that is learned on blocks carries what the model without rounding gives"
    asked = [(one, place.tasks[one.name].spec) for one in wanted]
    # By rank 0, which has the whole text.
    found = ranks.called_by_first(partial(tune, place.block, before, place.batches, place.index, asked, place.stop))
    for group in groups:
        members = [linear for linear in group.members if linear.name in found.weights]
        inputs = place.inputs_of(group) if members else None
        for linear in members:
            weight, task = linear.read(), place.tasks[linear.name]
            rounded = found.weights[linear.name]
            held = rounded.dequantize()
            linear.write(held)
            done[linear.name] = rounded
            assert inputs is not None
            noise, signal = (float(output_error(part, inputs.second).sum()) for part in (held - weight, weight))
            ratio = sqnr_db(signal, max(noise, 0.0))
            yield MatrixQuantized(linear.name, str(task.spec), task.how.title, ratio, rounded.bytes, None, found.note)
            yield from ticker.advance()


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
    known = _shared_out(place, asked, inputs)
    for linear in asked:
        place.stop.check()
        task = place.tasks[linear.name]
        result = known.get(linear.name) or _rounded(task, linear, inputs, linear is asked[-1])
        linear.write(result.weight.dequantize())
        if result.shift is not None and linear.bias is not None:
            linear.bias.data += result.shift.to(linear.bias.device)
        done[linear.name] = result.weight
        source = folded.get(linear.name)
        yield MatrixQuantized(linear.name, str(task.spec), task.how.title, result.sqnr_db, result.weight.bytes, source, result.note)
        yield from ticker.advance()


def _rounded(task: Task, linear: Linear, inputs: Gram | None, last: bool) -> Quantized:
    return quantize_matrix(linear.view(), task.spec, task.how, inputs, linear.bias is not None, last)


def _shared_out(place: Place, asked: Sequence[Linear], inputs: Gram | None) -> dict[str, Quantized]:
    """Where several ranks work, the matrices of a group, each rounded by one of them; by name."""
    if not ranks.several():
        return {}
    own: dict[str, Quantized] = {}
    for turn, linear in enumerate(asked):
        place.stop.check()
        if ranks.mine(turn):
            result = _rounded(place.tasks[linear.name], linear, inputs, turn + ranks.count() >= len(asked))
            own[linear.name] = replace(result, weight=result.weight.to("cpu"), shift=None if result.shift is None else result.shift.cpu())
    return {name: result for several in ranks.gathered(own) for name, result in several.items()}


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
    # Batch by batch, so that it does not matter which rank has which.
    own = [(batch.turn, hashlib.sha256(content(batch.hidden)).digest()) for batch in batches if batch.counts]
    for _, part in sorted((one for several in ranks.gathered(own) for one in several), key=lambda one: one[0]):
        digest.update(part)
    digest.update(repr(sorted((name, str(task.spec), str(task.method)) for name, task in tasks.items())).encode())
    return digest.hexdigest()
