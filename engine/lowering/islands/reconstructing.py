"""Rounding learned within islands, on what the model's own Python gives them in fp32."""

from __future__ import annotations

import copy
from collections.abc import Generator, Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from engine.events.cancellation import StopToken
from engine.events.event import Event
from engine.lowering.graph import conversion
from engine.lowering.graph.layout import Layout
from engine.lowering.graph.reconstructing import learn
from engine.lowering.graph.reconstruction import asks
from engine.lowering.islands.union import Part
from engine.lowering.islands.within import WatchingForward, WithForwards
from engine.models.memory import laid_out
from engine.numerics.qparams import QParams
from engine.recipe.spec import LayerSpec
from engine.tasks.base import Task

# Calibration items whose inputs of islands are kept.
_ITEMS, _AT_ONCE = 128, 8


def reconstructed(
    root: nn.Module, exact: Sequence[Part], rounded_parts: Sequence[Part], layout: Layout, specs: Mapping[str, LayerSpec],
    grids: Mapping[str, QParams], rounded: conversion.RoundedWeights, task: Task, items: int, seed: int, stop: StopToken, checkpoints: Path,
) -> Generator[Event, None, tuple[conversion.RoundedWeights, Mapping[str, QParams]]]:  # fmt: skip
    """``rounded``, of the graph of all islands, and ``grids`` with what is learned in each of them: ``exact`` and ``rounded_parts`` are the
    islands in fp32 and as they were rounded. Both as they are where no layer asks for it."""
    if not any(asks(spec) for spec in specs.values()):
        return rounded, grids
    calls: list[list[tuple[Tensor, ...]]] = [[] for _ in exact]
    watching = {
        part.path: WatchingForward(part.call, part.taken, root.get_submodule(part.path).forward, partial(_keep, seen))
        for part, seen in zip(exact, calls, strict=True)
    }
    model = WithForwards(root, watching)
    with torch.inference_mode():
        for batch in task.calibration_batches(batch=_AT_ONCE, limit=min(items, _ITEMS)):
            stop.check()
            batch = batch.laid_out()
            model(*batch.args, **batch.kwargs)
    graph, weights, notes = copy.deepcopy(rounded.graph), dict(rounded.weights), dict(rounded.notes)
    norms = {unit.layer: unit.bn for unit in layout.units}
    targets = {node.name: str(node.target) for node in graph.graph.nodes}
    for number, (whole, part, seen) in enumerate(zip(exact, rounded_parts, calls, strict=True)):
        own = conversion.RoundedWeights(part.of_nodes(weights), part.of_nodes(notes), part.graph)
        if not own.weights or not seen:
            continue
        chunks = [tuple(x.clone() for x in inputs) for inputs in seen]
        within = whole.of_layout(layout)
        steps = learn(
            whole.graph, within, specs, whole.of_nodes(grids), own, chunks, seed + number, stop, checkpoints / f"island-{number:04d}"
        )
        found, learned = yield from steps
        weights, notes, grids = {**weights, **found.weights}, {**notes, **found.notes}, {**grids, **learned}
        for name in found.weights:
            for path in (targets[layer] for layer in (name, norms.get(name)) if layer):
                graph.get_submodule(path).load_state_dict(found.graph.get_submodule(path).state_dict())
    return conversion.RoundedWeights(weights, notes, graph), grids


def _keep(seen: list[tuple[Tensor, ...]], inputs: tuple[Tensor, ...]) -> None:
    seen.append(laid_out(inputs))
