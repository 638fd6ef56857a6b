"""reconstruct: the rounding of layers whose method learns it, on the calibration items of a task."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, fx

from engine.events.cancellation import StopToken
from engine.events.event import Event, Notice
from engine.lowering.graph import conversion
from engine.lowering.graph.bias import correct
from engine.lowering.graph.call import call_of, inputs_of
from engine.lowering.graph.layout import Layout
from engine.lowering.graph.reconstruct import Start, items_within, reconstruct
from engine.lowering.graph.reconstruction import asks
from engine.machine import ranks
from engine.numerics.qparams import QParams
from engine.recipe.spec import LayerSpec
from engine.tasks.base import Task

# Calibration items that go through a graph together.
AT_ONCE = 32
KEPT = "checkpoints/rounding"


def reconstructed(
    gm: fx.GraphModule, layout: Layout, specs: Mapping[str, LayerSpec], grids: Mapping[str, QParams], rounded: conversion.RoundedWeights,
    task: Task, items: int, sizes: Mapping[str, tuple[int, ...]], seed: int, stop: StopToken, checkpoints: Path | None = None,
) -> Generator[Event, None, tuple[conversion.RoundedWeights, Mapping[str, QParams]]]:  # fmt: skip
    """``rounded`` and ``grids`` with what is learned on ``items`` of the calibration items of ``task``, as many as have room; both as they
    are where no layer asks for it. ``sizes`` are those of each node's value for one item. Labels are not looked at."""
    if not any(asks(spec) for spec in specs.values()):
        return rounded, grids
    fitting = items_within(gm, sizes, items)
    if fitting < items:
        yield Notice(f"rounding is learned on {fitting} of the {items} calibration items: the values of more have no room", "warning")
    chunks = _chunks(gm, task, fitting)
    found = yield from learn(gm, layout, specs, grids, rounded, chunks, seed, stop, checkpoints, results_of(gm, task))
    return found


def learn(
    gm: fx.GraphModule, layout: Layout, specs: Mapping[str, LayerSpec], grids: Mapping[str, QParams], rounded: conversion.RoundedWeights,
    chunks: Sequence[tuple[Tensor, ...]], seed: int, stop: StopToken, checkpoints: Path | None = None,
    results: Callable[[Any], tuple[Tensor, ...]] | None = None,
) -> Generator[Event, None, tuple[conversion.RoundedWeights, Mapping[str, QParams]]]:  # fmt: skip
    """The same on the graph's inputs ``chunks``."""
    start = Start(gm, rounded.graph, layout, specs, grids, rounded.weights, results)
    # Each layer is learned on what those before it give: one after the other, by one rank.
    found = yield from ranks.by_first(reconstruct(start, chunks, stop, seed, rounded.notes, checkpoints))
    return conversion.learned(gm, layout, rounded, found), {**grids, **found.grids}


def corrected(
    gm: fx.GraphModule, layout: Layout, specs: Mapping[str, LayerSpec], grids: Mapping[str, QParams], rounded: conversion.RoundedWeights,
    task: Task, items: int, sizes: Mapping[str, tuple[int, ...]], stop: StopToken, ranges: bool = False,
) -> Generator[Event, None, tuple[conversion.RoundedWeights, dict[str, Any]]]:  # fmt: skip
    """``rounded`` with its biases corrected, with ``ranges`` its scales too, and the report's entry of what that brought; as it is where
    the results on the items held back are no better. It is done on ``items`` of the calibration items of ``task``, as many as have room."""
    chunks = _chunks(gm, task, items_within(gm, sizes, items))
    start = Start(gm, rounded.graph, layout, specs, grids, rounded.weights)
    found = yield from ranks.by_first(correct(start, chunks, stop, ranges))
    entry = {
        "step": "bn_reestimation" if ranges else "bias_correction", "layers": sorted(found.changes),
        "sqnr_db_before": found.before, "sqnr_db_after": found.after, "taken": found.after > found.before,
    }  # fmt: skip
    title = "re-estimation of normalizations" if ranges else "bias correction"
    figures = f"{found.after:.1f} dB on calibration items held back, against {found.before:.1f} dB without"
    if found.after <= found.before:
        yield Notice(f"{title}: undone, {figures}")
        return rounded, entry
    yield Notice(f"{title}: {len(found.changes)} of {len(rounded.weights)} layers, {figures}")
    return conversion.learned(gm, layout, rounded, found.found), entry


def _chunks(gm: fx.GraphModule, task: Task, items: int) -> list[tuple[Tensor, ...]]:
    """The graph's inputs for that many calibration items, in eight chunks or more, of which every eighth can judge."""
    return [inputs_of(gm, part) for part in task.calibration_batches(batch=min(AT_ONCE, max(items // 8, 1)), limit=items)]


def results_of(gm: fx.GraphModule, task: Task) -> Callable[[Any], tuple[Tensor, ...]] | None:
    """What gives the task's logits of what the graph returns, None where its outputs are none."""
    if not task.distribution:
        return None
    call = call_of(gm.graph)
    if call is None or call.plain:
        return task.outputs
    return lambda raw: task.outputs(call.rebuild(raw if isinstance(raw, tuple) else (raw,)))
