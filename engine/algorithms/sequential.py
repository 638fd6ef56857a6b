"""A decoder quantized block by block: each layer is calibrated on what the quantized layers before it put out.

One block's hidden states and one group's statistics are in memory at a time.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from engine.algorithms.capture import Batch, Reached, run_block
from engine.algorithms.checkpoint import read_block, write_block
from engine.algorithms.folding import Group, groups_of
from engine.algorithms.gram import Gram
from engine.algorithms.linear import Linear, linears
from engine.algorithms.onematrix import quantize_matrix
from engine.algorithms.progress import MatrixQuantized
from engine.algorithms.registry import Method, method
from engine.cancel import StopToken
from engine.events import Event
from engine.quant.grouped import GroupedWeight, GroupSpec
from engine.ticker import Ticker


@dataclass(frozen=True)
class Task:
    """What a matrix is to become: ``method`` is a name of ``registry.METHODS`` or a method of one's own."""

    spec: GroupSpec
    method: str | Method = "gptq"

    @property
    def how(self) -> Method:
        return method(self.method) if isinstance(self.method, str) else self.method


# None keeps the matrix of that name as it is.
Choose = Callable[[str], Task | None]


def quantize_blocks(
    blocks: Sequence[tuple[str, nn.Module]],
    batches: list[Batch],
    choose: Choose,
    stop: StopToken | None = None,
    checkpoints: Path | None = None,
) -> Generator[Event, None, dict[str, GroupedWeight]]:
    """Quantize the linear layers of ``blocks``, (name, module) in the order they run, and return their packed weights by name.

    The blocks are changed in place: weights become what their integers stand for, norms and biases take up scales and means.
    ``batches`` (from ``capture``) hold the hidden states that enter the first block and are overwritten by those that leave
    each. Yields ``Progress`` in matrices, and ``MatrixQuantized``. With ``checkpoints``, each finished block is
    written there, and a later call with the same model, text and tasks goes on from it bit for bit.
    Raises Cancelled when ``stop`` is set, at the next batch, and EngineError as its parts do.
    """
    stop = stop or StopToken()
    named = [(name, block, linears(block, name)) for name, block in blocks]
    tasks = {m.name: task for _, _, found in named for m in found if (task := choose(m.name)) is not None}
    ticker = Ticker("quantize", len(tasks), "matrices", clock=stop.clock)
    mark = fingerprint(named, batches, tasks) if checkpoints is not None else ""
    packed: dict[str, GroupedWeight] = {}
    for index, (_, block, found) in enumerate(named):
        path = None if checkpoints is None else checkpoints / f"block-{index:04d}.safetensors"
        done = None if path is None else read_block(path, mark, block, found)
        if done is not None:
            yield from ticker.advance(len(done))
        else:
            done = yield from _one_block(block, found, batches, index, tasks, stop, ticker)
            if path is not None:
                write_block(path, mark, block, found, done)
        packed |= done
        if index + 1 < len(named):
            leave(block, batches, index, stop)
    return packed


@torch.no_grad()
def leave(block: nn.Module, batches: list[Batch], index: int, stop: StopToken) -> None:
    """Run ``block`` and put what leaves it in the place of what entered."""
    for batch in batches:
        stop.check()
        batch.hidden = run_block(block, batch, index)


def _one_block(
    block: nn.Module, found: list[Linear], batches: list[Batch], index: int, tasks: dict[str, Task], stop: StopToken, ticker: Ticker
) -> Generator[Event, None, dict[str, GroupedWeight]]:
    wanted = [matrix for matrix in found if matrix.name in tasks]
    done: dict[str, GroupedWeight] = {}
    if any(tasks[matrix.name].how.needs_inputs for matrix in wanted):
        scaled = any(tasks[matrix.name].how.scaling for matrix in wanted)
        groups = groups_of(block, found, batches[0], index, fold=scaled)
    else:
        groups = [Group((matrix,)) for matrix in wanted]
    reached = {matrix.name for group in groups for matrix in group.members}
    for group in groups + [Group((matrix,)) for matrix in wanted if matrix.name not in reached]:
        members = [matrix for matrix in group.members if matrix.name in tasks]
        needed = group.members[0].name in reached and any(tasks[matrix.name].how.needs_inputs for matrix in members)
        inputs = statistics(block, group, batches, index, stop) if needed else None
        folded: str | None = None
        if inputs is not None:
            inputs, folded = _scale(group, members, tasks, inputs)
        for matrix in members:
            stop.check()
            result = quantize_matrix(matrix.read(), tasks[matrix.name].spec, tasks[matrix.name].how, inputs, matrix.bias is not None)
            matrix.write(result.weight.dequantize())
            if result.shift is not None and matrix.bias is not None:
                matrix.bias.data += result.shift
            done[matrix.name] = result.weight
            task = tasks[matrix.name]
            title = task.how.title
            yield MatrixQuantized(matrix.name, str(task.spec), title, result.sqnr_db, result.weight.bytes, folded, result.note)
            yield from ticker.advance()
    return done


def _scale(group: Group, members: list[Linear], tasks: dict[str, Task], inputs: Gram) -> tuple[Gram, str | None]:
    """Fold the scale that the members' methods ask for, if any and where it can be. One method's scale serves the whole group."""
    scaling = next((tasks[matrix.name].how.scaling for matrix in members if tasks[matrix.name].how.scaling), None)
    if scaling is None or group.source is None:
        return inputs, None
    scale = scaling([matrix.read() for matrix in members], [tasks[matrix.name].spec for matrix in members], inputs)
    group.fold(scale)
    return inputs.divided(scale), group.source.name


@torch.no_grad()
def statistics(block: nn.Module, group: Group, batches: list[Batch], index: int, stop: StopToken) -> Gram:
    """The inputs of ``group`` over all batches; what the block does after it is not run."""
    first = group.members[0]
    gram = Gram(first.shape[1], first.held.device)
    keep: Tensor | None = None

    def enters(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        gram.add(args[0], keep)
        raise Reached

    hook = first.module.register_forward_pre_hook(enters)
    try:
        for batch in batches:
            stop.check()
            keep = batch.keep
            try:
                run_block(block, batch, index)
            except Reached:
                continue
    finally:
        hook.remove()
    return gram


def fingerprint(named: Sequence[tuple[str, nn.Module, Sequence[Linear]]], batches: Sequence[Batch], tasks: dict[str, Task]) -> str:
    """Of the model's weights, the calibration text and the tasks. Two runs that agree in it give the same bits on one machine."""
    digest = hashlib.sha256()
    for _, block, _ in named:
        for name, tensor in block.state_dict().items():
            digest.update(f"{name} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    for batch in batches:
        digest.update(batch.hidden.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    digest.update(repr(sorted((name, str(task.spec), str(task.method)) for name, task in tasks.items())).encode())
    return digest.hexdigest()
