"""Calibration items on their way through a graph, segment by segment: the values that later nodes read are kept, no others."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from engine.lowering.graph.kinds import in_place
from engine.models.memory import laid_out

# What computes a node in another way, given the value of its input; and what is done to a value once it is there.
Layers = Mapping[str, Callable[[Tensor], Tensor]]
Grids = Mapping[str, Callable[[Tensor], Tensor]]


class Nodes(fx.Interpreter):
    """Runs some nodes of a graph: those in ``layers`` by what they are mapped to, those in ``folded`` not at all (their input passes
    through), and the values of those in ``grids`` are put through what they are mapped to."""

    def __init__(self, gm: fx.GraphModule, layers: Layers | None = None, folded: Iterable[str] = (), grids: Grids | None = None) -> None:
        super().__init__(gm)
        self._layers, self._folded, self._grids = layers or {}, frozenset(folded), grids or {}

    def run_node(self, n: fx.Node) -> Any:
        if n.name in self._folded:
            value = self.env[n.all_input_nodes[0]]
        elif n.name in self._layers:
            value = self._layers[n.name](self.env[n.all_input_nodes[0]])
        else:
            value = super().run_node(n)
        return self._grids[n.name](value) if n.name in self._grids else value

    def run_nodes(self, nodes: Sequence[fx.Node], values: Mapping[fx.Node, Any]) -> dict[fx.Node, Any]:
        """All values, ``values`` and those that ``nodes`` give. What an operation would change in place is copied before."""
        changed = {n.all_input_nodes[0] for n in nodes if in_place(n) and n.all_input_nodes}
        self.env = {n: v.clone() if n in changed and isinstance(v, Tensor) else v for n, v in values.items()}
        for node in nodes:
            self.env[node] = self.run_node(node)
        found, self.env = self.env, {}
        return found


class Stream:
    """The values of one form of a graph for ``chunks`` of calibration items, as far as its nodes were run."""

    def __init__(self, gm: fx.GraphModule, chunks: Sequence[tuple[Tensor, ...]], nodes: Nodes) -> None:
        self.nodes = nodes
        self.count = len(chunks)
        placeholders = [node for node in gm.graph.nodes if node.op == "placeholder"]
        self.values: dict[fx.Node, list[Any]] = {
            node: [laid_out(chunk)[place] for chunk in chunks] for place, node in enumerate(placeholders)
        }

    def given(self, chunk: int, reads: Iterable[fx.Node]) -> dict[fx.Node, Any]:
        return {node: self.values[node][chunk] for node in reads}

    @torch.no_grad()
    def run(self, nodes: Sequence[fx.Node], keep: Iterable[fx.Node]) -> None:
        """Compute ``nodes``, of which ``keep`` (and what else of the values there are) is read later."""
        kept = set(keep)
        reads = reads_of(nodes)
        new: dict[fx.Node, list[Any]] = {node: [] for node in nodes if node in kept}
        for chunk in range(self.count):
            found = self.nodes.run_nodes(nodes, self.given(chunk, reads))
            for node, values in new.items():
                values.append(found[node])
        self.values = {node: values for node, values in {**self.values, **new}.items() if node in kept}


def reads_of(nodes: Sequence[fx.Node]) -> list[fx.Node]:
    """What ``nodes`` read and none of them gives, in order."""
    own = set(nodes)
    return list(dict.fromkeys(read for node in nodes for read in node.all_input_nodes if read not in own))
