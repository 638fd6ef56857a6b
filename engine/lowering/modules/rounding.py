"""From a plan to integers: what stands outside of the blocks, then the blocks in their order."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from engine.algorithms.matrix import quantize_matrix
from engine.algorithms.registry import method
from engine.events.cancellation import StopToken
from engine.events.event import Event, LayerRow
from engine.lowering.modules.blocks import Task, quantize_blocks
from engine.lowering.modules.capture import Batch, capture
from engine.lowering.modules.observe import batches, observe, reached
from engine.lowering.modules.progress import MatrixQuantized, noted
from engine.lowering.modules.quantized import QuantizedDecoder, duplicate
from engine.lowering.modules.trained_noise import noises
from engine.machine import ranks
from engine.models.anatomy import blocks_of, weight_of
from engine.numerics.qtensor import QTensor
from engine.numerics.quantized_matrix import QuantizedMatrix
from engine.numerics.scheme import scheme_of
from engine.recipe.spec import ActivationSpec


def round_decoder(
    model: Any, layers: Sequence[LayerRow], windows: Sequence[Tensor], batch: int, stop: StopToken, checkpoints: Path | None = None
) -> Generator[Event, None, tuple[QuantizedDecoder, dict[str, MatrixQuantized]]]:
    """Quantize a copy of ``model`` as ``layers`` say, calibrated on ``windows`` of token ids; and what is known of each matrix.

    ``windows`` are on the model's device; what is returned is on the processor. Goes block by block: the statistics of one group of
    layers are in memory at a time, and with ``checkpoints`` each finished block is kept and not done again. Yields Progress and
    ``MatrixQuantized``. Raises EngineError as its parts do, Cancelled on stop.
    """
    twin = duplicate(model)
    wanted = {row.path: row for row in layers if row.actual.weights is not None}
    told: dict[str, MatrixQuantized] = {}
    path, blocks = blocks_of(twin)
    tasks = {
        row.path: Task(scheme_of(row.actual.weights), row.actual.weights.method)
        for row in wanted.values() if row.capabilities.role == "block" and row.actual.weights is not None
    }  # fmt: skip
    weights: dict[str, QTensor] = {}
    # First what stands outside of the blocks: they read what rounded embeddings give.
    for row in wanted.values():
        if row.path not in tasks and row.tied is None:
            stop.check()
            assert row.actual.weights is not None
            weights[row.path], note = alone(twin, row)
            told[row.path] = note
            yield note
    if tasks:
        named = [(f"{path}.{number}", block) for number, block in enumerate(blocks)]
        steps = quantize_blocks(named, _entering(model, twin, tasks, windows, batch, stop), tasks.get, stop, checkpoints)
        weights |= yield from noted(steps, lambda note: told.update({note.name: note}))
    grids = yield from _grids(twin, wanted, windows, batch, stop)
    return QuantizedDecoder(twin.to("cpu"), _matrices(wanted, weights, grids)), told


def retuned(
    before: QuantizedDecoder, told: Mapping[str, MatrixQuantized], original: Any, model: Any, weights: Mapping[str, QTensor],
    windows: Sequence[Tensor], batch: int, stop: StopToken,
) -> Generator[Event, None, tuple[QuantizedDecoder, dict[str, MatrixQuantized]]]:  # fmt: skip
    """``before`` with ``weights`` and ``model``, its twin, as training has left them, and what is known of each matrix then: ``told`` of
    ``before``, with SQNRs against ``original``, the fp32 model (``trained.noises``). Static grids are found anew."""
    static = {path: m.activations for path, m in before.matrices.items() if m.activations and not m.activations.dynamic}
    seen = (yield from observe(model, static, windows, batch, stop, counting=False)) if static else {}
    found = yield from noises(original, before, told, model, weights, windows, batch, stop)
    matrices = {
        path: replace(
            matrix,
            weight=weights.get(path, matrix.weight).to("cpu"),
            grid=reached(seen, path).grid(path) if path in static else matrix.grid,
        )
        for path, matrix in before.matrices.items()
    }
    return QuantizedDecoder(model.to("cpu"), matrices), found


def _entering(model: Any, twin: Any, tasks: Mapping[str, Task], windows: Sequence[Tensor], batch: int, stop: StopToken) -> list[Batch]:
    """What enters the blocks of ``twin``, and where errors are propagated, of ``model`` too; nothing where no method looks at inputs."""
    if not any(task.how.needs_inputs for task in tasks.values()):
        return []

    # Of all ranks each has its part of the text, and the first batch, which the blocks are looked at with. Blocks are learned on
    # rank 0, on all of it.
    whole = ranks.is_first() and any(task.how.tuned for task in tasks.values())
    turns = [turn for turn in range(-(-len(windows) // batch)) if turn == 0 or whole or ranks.mine(turn)]

    def captured(decoder: Any) -> list[Batch]:
        blocks = list(blocks_of(decoder)[1])
        texts = (text for turn, text in enumerate(batches(windows, batch)) if turn in turns)
        found = capture(lambda ids: decoder(input_ids=ids, use_cache=False), blocks, texts, stop)
        for turn, one in zip(turns, found, strict=True):
            one.turn, one.counts = turn, ranks.mine(turn)
        return found

    entering = captured(twin)
    if any(task.how.carries for task in tasks.values()):
        for rounded, original in zip(entering, captured(model), strict=True):
            rounded.original, rounded.original_others = original.hidden, original.others
    return entering


@torch.no_grad()
def alone(twin: Any, row: LayerRow) -> tuple[QTensor, MatrixQuantized]:
    """A matrix outside of the blocks, from its weights alone."""
    spec = row.actual.weights
    assert spec is not None
    how, form = method(spec.method), scheme_of(spec)
    held = weight_of(twin.get_submodule(row.path))
    found = quantize_matrix(held.float().contiguous(), form, how, None, False)
    held.copy_(found.weight.dequantize())
    return found.weight, MatrixQuantized(row.path, str(form), how.title, found.sqnr_db, found.weight.bytes)


def _grids(
    twin: Any, wanted: Mapping[str, LayerRow], windows: Sequence[Tensor], batch: int, stop: StopToken
) -> Generator[Event, None, dict[str, Any]]:
    """The grids of static activations, found on the rounded model: scales that were folded have changed what layers read."""
    static: dict[str, ActivationSpec] = {
        path: row.actual.activations for path, row in wanted.items() if row.actual.activations and not row.actual.activations.dynamic
    }
    if not static:
        return {}
    seen = yield from observe(twin, static, windows, batch, stop, counting=False)
    return {path: reached(seen, path).grid(path) for path in static}


def _matrices(wanted: Mapping[str, LayerRow], weights: Mapping[str, QTensor], grids: Mapping[str, Any]) -> dict[str, QuantizedMatrix]:
    return {
        path: QuantizedMatrix(weights[row.tied or path].to("cpu"), row.actual.activations, grids.get(path), row.tied)
        for path, row in wanted.items()
    }
