"""trace: the model as a graph with shapes, checked against the model."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from torch import Tensor, fx, nn

from engine.errors import EngineError
from engine.events.event import Event, Graph, Notice, Table
from engine.lowering.base import NotWhole
from engine.lowering.graph import table
from engine.lowering.graph.calls import encode, function_name
from engine.lowering.graph.kinds import kind, weights_in
from engine.lowering.graph.profile import Profile, profile
from engine.lowering.graph.simplify import simplify
from engine.lowering.graph.trace import UntracedModule
from engine.lowering.graph.trace import trace as trace_graph
from engine.tasks.base import Batch

LAYERS = ("conv", "conv_transpose", "linear")
_MOST = 0.5


@dataclass(frozen=True)
class TracedModel:
    """``profile`` is that of one item in fp32."""

    graph: fx.GraphModule
    untraced: tuple[UntracedModule, ...]
    max_abs_delta: float
    profile: Profile

    @property
    def time_share(self) -> dict[str, float]:
        """Node names to their part (0..1) of the fp32 time for one image."""
        return self.profile.shares


def storable(graph: fx.GraphModule) -> None:
    """Raises EngineError where a graph calls, or gives to a call, what cannot be stored."""
    for node in graph.graph.nodes:
        if node.op in ("call_function", "call_method"):
            function_name(node)
        if node.op in ("call_function", "call_method", "call_module"):
            encode((node.args, node.kwargs))


def tried(model: nn.Module, example: Batch | Tensor) -> Generator[Event, None, TracedModel | NotWhole]:
    """``trace``, or why it cannot be."""
    try:
        return (yield from trace(model, example))
    except NotWhole as found:
        return found


def _mostly_whole(model: nn.Module, untraced: tuple[UntracedModule, ...]) -> UntracedModule | None:
    """The largest of the modules that stayed whole, where they hold more than half of the weights of all layers."""
    held = {leaf: weights_in(model.get_submodule(leaf.path)) for leaf in untraced if leaf.path != "model"}
    return max(held, key=lambda leaf: held[leaf]) if held and sum(held.values()) > _MOST * weights_in(model) else None


def trace(model: nn.Module, example: Batch | Tensor) -> Generator[Event, None, TracedModel]:
    if isinstance(example, Tensor):
        example = Batch((example,), count=len(example))
    traced = trace_graph(model, example)
    graph = simplify(traced.module, example)
    whole = next((leaf for leaf in traced.untraced if not any(kind(node) in LAYERS for node in graph.graph.nodes)), None)
    if whole is not None:
        raise NotWhole(
            f"nothing in {whole.kind} can be quantized: {whole.reason} ({whole.where}): move that line into a module of its own",
            f"{whole.reason} ({whole.where})",
        )
    if (left := _mostly_whole(model, traced.untraced)) is not None:
        raise NotWhole(f"most of {type(model).__name__} stays whole: {left.reason} ({left.where})", f"{left.reason} ({left.where})")
    try:
        storable(graph)
    except EngineError as error:
        raise NotWhole(str(error)) from error
    if traced.autocast:
        yield Notice("autocast inside of forward is left out: the model is quantized, and compared with, as it computes in fp32")
    for leaf in traced.untraced:
        yield Notice(f"{leaf.path} ({leaf.kind}) stays whole, in fp32: {leaf.reason} ({leaf.where})", "warning")
    found = profile(graph, example.first(1))
    yield graph_table("graph", "Graph", graph)
    yield graph_rows("traced", graph, found.shares)
    return TracedModel(graph, traced.untraced, traced.max_abs_delta, found)


def graph_table(key: str, title: str, gm: fx.GraphModule) -> Table:
    rows = tuple(table.cells(row) for row in table.rows(gm))
    return Table(key, f"{title} ─ {len(rows)} nodes", table.COLUMNS, rows)


def graph_rows(which: Literal["traced", "fused"], gm: fx.GraphModule, shares: Mapping[str, float]) -> Graph:
    """``shares`` maps node names to their part of some time; here they are parts of the time of the nodes that are left."""
    whole = sum(shares.get(node.name, 0.0) for node in gm.graph.nodes) or 1.0
    rows = (replace(row, time_share=shares[row.name] / whole) if row.name in shares else row for row in table.rows(gm))
    return Graph(which, tuple(rows))
