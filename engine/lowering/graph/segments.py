"""A graph in pieces that follow one another: single layers, or the residual blocks around them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from torch import fx

from engine.lowering.graph.layout import Layout, Unit

# Layers that are reconstructed together at most.
MOST = 8


@dataclass(frozen=True)
class Segment:
    """``nodes`` in the order in which they run, and the layer nodes among them that hold integer weights."""

    nodes: tuple[fx.Node, ...]
    layers: tuple[str, ...] = ()

    @property
    def output(self) -> fx.Node:
        return self.nodes[-1]


def segments(gm: fx.GraphModule, layout: Layout, weighted: Collection[str], blocks: Collection[str]) -> list[Segment]:
    """All nodes of ``gm`` but its inputs and its output. ``weighted`` are the layer nodes on integer weights; those of ``blocks`` are
    taken together with the others between two places of the graph where a single value is alive, which is where a residual block
    begins and ends (Li et al. 2021, arXiv:2102.05426, section 3.2), if these are 2 to ``MOST``. All else is a segment for each layer."""
    nodes = [node for node in gm.graph.nodes if node.op not in ("placeholder", "output")]
    found: list[Segment] = []
    inside = layout.inside()
    inner = {name for name, unit in inside.items() if name != unit.output}
    for part in _between_cuts(gm, nodes, inner):
        layers = tuple(node.name for node in part if node.name in weighted)
        if 2 <= len(layers) <= MOST and any(name in blocks for name in layers):
            found.append(Segment(tuple(part), layers))
        else:
            found += _by_layer(part, layout, weighted)
    return found


def last_reads(gm: fx.GraphModule) -> dict[fx.Node, fx.Node]:
    """The last node that reads each value."""
    return {read: node for node in gm.graph.nodes for read in node.all_input_nodes}


def _between_cuts(gm: fx.GraphModule, nodes: list[fx.Node], inner: Collection[str]) -> list[list[fx.Node]]:
    """``nodes`` in runs; after each but the last the one value that is alive is that of its last node, which is none of ``inner``."""
    last = last_reads(gm)
    order = {node: place for place, node in enumerate(gm.graph.nodes)}
    alive = {node for node in gm.graph.nodes if node.op == "placeholder" and node in last}
    runs: list[list[fx.Node]] = [[]]
    for node in nodes:
        runs[-1].append(node)
        alive = {value for value in alive if order[last[value]] > order[node]}
        if node in last:
            alive.add(node)
        if alive == {node} and node.name not in inner:
            runs.append([])
    return [run for run in runs if run]


def _by_layer(part: list[fx.Node], layout: Layout, weighted: Collection[str]) -> list[Segment]:
    """A segment for each unit, at the place of its last node, and for each other node."""
    inside: Mapping[str, Unit] = layout.inside()
    by_name = {node.name: node for node in part}
    found = []
    for node in part:
        unit = inside.get(node.name)
        if unit is None:
            found.append(Segment((node,), (node.name,) if node.name in weighted else ()))
        elif node.name == unit.output:
            found.append(Segment(tuple(by_name[name] for name in unit.nodes()), (unit.layer,)))
    return found
