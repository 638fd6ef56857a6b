"""equalize: channels of neighbouring layers brought near one another, where that makes the outputs better on items held back."""

from __future__ import annotations

import math
from collections.abc import Generator
from typing import Any

import torch
from torch import Tensor, fx

from engine.events.cancellation import StopToken
from engine.events.event import Event, Notice
from engine.lowering.graph.call import inputs_of, largest, largest_difference, results_of
from engine.lowering.graph.equalize import Pair, equalize, factors, find_pairs
from engine.lowering.graph.kinds import kind
from engine.lowering.graph.layout import Layout, arrange
from engine.lowering.graph.simulated import nearest_sqnr
from engine.lowering.graph.streams import Nodes
from engine.models.memory import laid_out
from engine.planning.plan import Plan
from engine.tasks.base import Task

# Items that are looked at, in batches of ``AT_ONCE``; every fourth batch judges.
_ITEMS, _AT_ONCE, _HELD = 128, 16, 4
# The largest change of the fp32 results, in parts of the largest of them, that rounding in float32 explains.
EXACT = 1e-4


def equalized(
    gm: fx.GraphModule, plan: Plan, layout: Layout, task: Task, items: int, stop: StopToken
) -> Generator[Event, None, tuple[fx.GraphModule, Layout, dict[str, Any] | None]]:
    """The graph and its layout, and the report's entry of what was done; the graph as it is, where nothing can be equalized, where it
    would not compute in fp32 what it did, and where its outputs under ``plan``, rounded to nearest, get no better on calibration
    items held back."""
    pairs = find_pairs(gm)
    usable = [pair for pair in pairs if pair.reason is None]
    chunks = [laid_out(inputs_of(gm, part)) for part in task.calibration_batches(batch=_AT_ONCE, limit=min(items, _ITEMS))]
    seen = [chunk for place, chunk in enumerate(chunks) if place % _HELD != _HELD - 1]
    held = [chunk for place, chunk in enumerate(chunks) if place % _HELD == _HELD - 1]
    if not usable or not held:
        reasons = "; ".join(dict.fromkeys(pair.reason for pair in pairs if pair.reason)) or "no layers follow one another"
        yield Notice(f"equalize: nothing to do ({reasons if not usable else 'too few calibration items'})", "warning")
        return gm, layout, None
    specs = plan.specs()
    spans = _spans(gm, [pair.before for pair in usable], seen, stop)
    by_tensor = [path for path, spec in specs.items() if spec.weights and spec.weights.granularity == "per-tensor"]
    by, found, delta = _moved(gm, usable, spans, by_tensor, held)
    free = [pair for pair in usable if not pair.clipped]
    if not delta <= EXACT and free and len(free) < len(usable):
        # Items held back may come further than those that factors through relu6 were made for.
        usable = free
        by, found, delta = _moved(gm, usable, spans, by_tensor, held)
    apart = max(float(factor.max() / factor.min()) for factor in by.values())
    entry: dict[str, Any] = {
        "step": "equalize", "layers": {pair.before: list(pair.paths) for pair in usable}, "largest_factor": round(apart, 2), "delta": delta,
        "refused": {pair.before: pair.reason for pair in pairs if pair.reason},
    }  # fmt: skip
    if not delta <= EXACT:
        yield Notice(f"equalize: undone, the fp32 results would change by {delta:.1g} of the largest", "warning")
        return gm, layout, {**entry, "taken": False}
    new = arrange(found, specs)
    before, after = (nearest_sqnr(graph, where, specs, seen, held, stop) for graph, where in ((gm, layout), (found, new)))
    entry |= {"sqnr_db_before": before, "sqnr_db_after": after, "taken": after > before}
    figures = f"{after:.1f} dB on calibration items held back, rounded to nearest, against {before:.1f} dB without"
    if after <= before:
        yield Notice(f"equalize: undone, {figures}")
        return gm, layout, entry
    yield Notice(f"equalize: {len(usable)} layers, factors up to {apart:.3g} apart: {figures}")
    return found, new, entry


def _moved(
    gm: fx.GraphModule, pairs: list[Pair], spans: dict[str, Tensor], per_tensor: list[str], held: list[tuple[Tensor, ...]]
) -> tuple[dict[str, Tensor], fx.GraphModule, float]:  # fmt: skip
    """The factors of ``pairs``, the graph with them, and how far its results are from those of ``gm``."""
    by = factors(gm, pairs, spans, per_tensor)
    found = equalize(gm, pairs, by)
    return by, found, _delta(gm, found, held)


def _spans(gm: fx.GraphModule, names: list[str], chunks: list[tuple[Tensor, ...]], stop: StopToken) -> dict[str, Tensor]:
    """The largest magnitude of each channel of the nodes ``names``; of what relu reads the largest positive value."""
    nodes = {node.name: node for node in gm.graph.nodes}
    spans: dict[str, Tensor] = {}

    def seen(name: str, value: Tensor) -> Tensor:
        node = nodes[name]
        positive = all(kind(user) in ("relu", "relu6") for user in node.users)
        axis = 1 if kind(node) == "conv" else value.dim() - 1
        sizes = (value.clamp_min(0) if positive else value.abs()).transpose(0, axis).flatten(1).amax(1)
        spans[name] = torch.maximum(spans[name], sizes) if name in spans else sizes
        return value

    runner = Nodes(gm, grids={name: (lambda value, name=name: seen(name, value)) for name in names})  # type: ignore[misc]
    inputs = [node for node in gm.graph.nodes if node.op == "placeholder"]
    rest = [node for node in gm.graph.nodes if node.op not in ("placeholder", "output")]
    with torch.inference_mode():
        for chunk in chunks:
            stop.check()
            runner.run_nodes(rest, dict(zip(inputs, chunk, strict=True)))
    return {name: span.clone() for name, span in spans.items()}


def _delta(before: fx.GraphModule, after: fx.GraphModule, chunks: list[tuple[Tensor, ...]]) -> float:
    """The largest difference of the results that are floats, in parts of the largest of them; NaN where one of them is."""
    differences, tops = [0.0], [1e-30]
    with torch.inference_mode():
        for chunk in chunks:
            wanted, got = (_floats(graph(*(x.clone() for x in chunk))) for graph in (before, after))
            differences.append(largest_difference(got, wanted))
            tops.append(largest(wanted))
    return math.nan if any(map(math.isnan, differences)) else max(differences) / max(tops)


def _floats(results: Any) -> list[Tensor]:
    return [x for x in results_of(results) if x.is_floating_point()]
