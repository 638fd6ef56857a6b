"""fuse: the pairs that can be folded, and the graph with them folded, its change measured."""

from __future__ import annotations

from collections.abc import Generator

from torch import Tensor, fx

from engine.events import Event, Notice, Table
from engine.graph.fuse import Pair, find_pairs
from engine.graph.fuse import fuse as fold
from engine.stages.trace import graph_table


def analyze(gm: fx.GraphModule) -> Generator[Event, None, tuple[Pair, ...]]:
    pairs = find_pairs(gm)
    rows = tuple((pair.conv, pair.bn, "can be folded" if pair.reason is None else f"not folded: {pair.reason}") for pair in pairs)
    yield Table("pairs", f"Layers followed by batch normalization ─ {len(pairs)}", ("layer", "normalization", "verdict"), rows)
    return pairs


def fuse(
    gm: fx.GraphModule, example: Tensor, pairs: tuple[Pair, ...]
) -> Generator[Event, None, tuple[fx.GraphModule, tuple[Pair, ...], float]]:
    """The graph with every foldable pair folded, the pairs with their deltas, and the largest change of the output."""
    fused, measured, change = fold(gm, example, pairs)
    yield graph_table("graph-fused", "Graph after folding", fused)
    count = sum(pair.max_abs_delta is not None for pair in measured)
    before, after = len(gm.graph.nodes), len(fused.graph.nodes)
    yield Notice(f"{count} of {len(pairs)} pairs folded: {before} nodes become {after}; the output changes by at most {change:.1e}")
    return fused, measured, change
