"""All islands as one graph without a connection between them, and that graph as islands again.

Names of nodes and paths of modules are then unlike each other across islands, so that what is found by name (grids, weights, noise,
kernels) is one mapping for the whole model, and planning, folding and rounding see one graph.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, fx

from engine.lowering.graph.call import CALL, Call, call_of, keep
from engine.lowering.graph.kinds import attribute, module_of
from engine.lowering.graph.layout import Layout
from engine.lowering.graph.sizes import held_sizes
from engine.lowering.islands.find import Island
from engine.tasks.base import Batch

# More items than any tensor has: no input of a union is one of a number of items.
_NO_ITEMS = 2**40


@dataclass(frozen=True)
class Part:
    """One island of a union: its ``graph`` alone, and its ``call`` with the names of the union."""

    path: str
    graph: fx.GraphModule
    call: Call
    names: frozenset[str]

    @property
    def taken(self) -> Call:
        """The call with the sizes that the graph serves."""
        if held_sizes(self.graph.graph) is not None:
            return self.call
        free = (replace(given, shape=(*given.shape[:1], *(None for _ in given.shape[1:]))) for given in self.call.inputs)
        return replace(self.call, inputs=tuple(free))

    def of_layout(self, layout: Layout) -> Layout:
        """The part of a union's layout that is this island's."""
        return Layout(
            tuple(unit for unit in layout.units if unit.layer in self.names),
            tuple(addition for addition in layout.sums if addition.add in self.names),
            tuple(c for c in layout.classes if c.name in self.names),
            tuple(gate for gate in layout.gates if gate.output in self.names),
            tuple(affine for affine in layout.affines if affine.norm in self.names),
        )

    def of_nodes(self, found: Mapping[str, Any]) -> dict[str, Any]:
        """Those of what a union has by node that are this island's."""
        return {name: value for name, value in found.items() if name in self.names}


@dataclass(frozen=True)
class Union:
    """``graph`` holds ``islands`` one after the other; ``example`` are the inputs of each island's first call."""

    graph: fx.GraphModule
    islands: tuple[Island, ...]
    example: Batch

    def parts(self, graph: fx.GraphModule) -> tuple[Part, ...]:
        """The islands of ``graph``, which is the union's or was made from it: inputs and results are in the same order."""
        inputs = [node for node in graph.graph.nodes if node.op == "placeholder"]
        (output,) = (node for node in graph.graph.nodes if node.op == "output")
        results = list(output.args[0])
        found = []
        for island in self.islands:
            taken, given = len(island.call.inputs), len(_results(island.graph))
            found.append(_part(graph, island, inputs[:taken], results[:given]))
            inputs, results = inputs[taken:], results[given:]
        return tuple(found)


def union(islands: Sequence[Island]) -> Union:
    """``islands`` as one graph, of which modules and parameters are theirs."""
    graph, held = fx.Graph(), {}
    results: list[fx.Node] = []
    placeholders: list[dict[fx.Node, fx.Node]] = []
    for island in islands:
        held.update(_held(island.graph))
        placeholders.append({node: _placed(graph, node) for node in island.graph.graph.nodes if node.op == "placeholder"})
    for island, new in zip(islands, placeholders, strict=True):
        for node in island.graph.graph.nodes:
            if node.op not in ("placeholder", "output"):
                new[node] = graph.node_copy(node, new.__getitem__)
        results += [new[node] for node in _results(island.graph)]
    graph.output(tuple(results))
    for node in graph.nodes:
        node.meta.pop(CALL, None)
    joined = fx.GraphModule(held, graph, "Islands")
    joined.eval()
    names = iter(node for node in joined.graph.nodes if node.op == "placeholder")
    inputs = [replace(given, value=(node := next(names)).name, name=node.name) for island in islands for given in island.call.inputs]
    args = tuple({"$": i} for i in range(len(inputs)))
    keep(joined.graph, Call(tuple(inputs), args, {}, (), {"tuple": [{"$": i} for i in range(len(results))]}))
    example: tuple[Tensor, ...] = tuple(x for island in islands for x in island.calls[0])
    return Union(joined, tuple(islands), Batch(example, count=_NO_ITEMS))


def _placed(graph: fx.Graph, node: fx.Node) -> fx.Node:
    """A placeholder of its own name: those of two islands may be called alike."""
    new = graph.node_copy(node)
    new.target = new.name
    return new


def _results(graph: fx.GraphModule) -> list[fx.Node]:
    (output,) = (node for node in graph.graph.nodes if node.op == "output")
    given: Any = output.args[0]
    return list(given) if isinstance(given, tuple | list) else [given]


def _held(gm: fx.GraphModule) -> dict[str, Any]:
    """The modules and tensors that a graph names, by path."""
    found: dict[str, Any] = {}
    for node in gm.graph.nodes:
        if node.op == "call_module":
            found[str(node.target)] = module_of(node)
        elif node.op == "get_attr":
            found[str(node.target)] = attribute(gm, node.target)
    return found


def _part(gm: fx.GraphModule, island: Island, inputs: list[fx.Node], results: list[fx.Node]) -> Part:
    needed, left = set(inputs), list(results)
    while left:
        node = left.pop()
        if node not in needed or node in results:
            needed.add(node)
            left += [used for used in node.all_input_nodes if used not in needed]
    graph = fx.Graph()
    new: dict[fx.Node, fx.Node] = {}
    for node in gm.graph.nodes:
        if node in needed:
            new[node] = graph.node_copy(node, new.__getitem__)
            new[node].meta.pop(CALL, None)
    graph.output(new[results[0]] if len(results) == 1 else tuple(new[node] for node in results))
    alone = fx.GraphModule(gm, graph, "Island")
    alone.train(gm.training)
    renamed = (replace(given, value=node.name) for given, node in zip(island.call.inputs, inputs, strict=True))
    call = replace(island.call, inputs=tuple(renamed))
    keep(alone.graph, call)
    assert call_of(alone.graph) == call
    return Part(island.path, alone, call, frozenset(node.name for node in needed))
