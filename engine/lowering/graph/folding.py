"""fuse: the pairs that can be folded, and the graph with them folded, its change measured."""

from __future__ import annotations

import copy
from collections.abc import Collection, Generator

from torch import fx

from engine.errors import UsageError, nearest
from engine.events.cancellation import StopToken
from engine.events.event import Event, Notice, PairRow, Pairs, Table
from engine.lowering.graph.fuse import Pair, find_pairs
from engine.lowering.graph.fuse import fuse as fold
from engine.lowering.graph.structured import structured
from engine.lowering.graph.tracing import TracedModel, graph_rows, graph_table
from engine.models.memory import channels_last
from engine.tasks.base import Batch, forward_of
from engine.tasks.timing import latencies

_SECONDS = 0.4
_IMAGES = 2  # Each pair's change is one of rounding: more images tell no more.


def analyze(gm: fx.GraphModule) -> Generator[Event, None, tuple[Pair, ...]]:
    pairs = find_pairs(gm)
    rows = tuple((pair.conv, pair.bn, "can be folded" if pair.reason is None else f"not folded: {pair.reason}") for pair in pairs)
    yield Table("pairs", f"Layers followed by batch normalization ─ {len(pairs)}", ("layer", "normalization", "verdict"), rows)
    yield Pairs(_rows(pairs))
    return pairs


def others(pairs: tuple[Pair, ...], chosen: Collection[str]) -> tuple[str, ...]:
    """The foldable normalizations that are not ``chosen``, in graph order. Raises UsageError for a name that is none of them."""
    names = [pair.bn for pair in pairs if pair.reason is None]
    check(pairs, chosen)
    return tuple(name for name in names if name not in chosen)


def check(pairs: tuple[Pair, ...], chosen: Collection[str]) -> None:
    """Raises UsageError for a name that is no normalization that can be folded."""
    names = [pair.bn for pair in pairs if pair.reason is None]
    for name in chosen:
        if name not in names:
            raise UsageError(f"{name!r} is no normalization that can be folded: {nearest(name, names) if names else 'there is none'}")


def fuse(
    traced: TracedModel, example: Batch, pairs: tuple[Pair, ...], later: Collection[str] = (), timed: StopToken | None = None
) -> Generator[Event, None, tuple[fx.GraphModule, tuple[Pair, ...], float]]:
    """The graph with every foldable pair folded but those of the normalizations in ``later``, the pairs with their deltas,
    and the largest change of the output, on the first items of ``example``. With ``timed`` both graphs are timed, which it can stop."""
    gm = traced.graph
    fused, measured, change = fold(gm, example.first(_IMAGES), [pair for pair in pairs if pair.bn not in later])
    measured = tuple(next((done for done in measured if done.bn_node == pair.bn_node), pair) for pair in pairs)
    yield graph_table("graph-fused", "Graph after folding", fused)
    yield graph_rows("fused", fused, traced.time_share)
    yield Pairs(_rows(measured), change, *(_times(gm, fused, example, timed) if timed else ()))
    count = sum(pair.max_abs_delta is not None for pair in measured)
    before, after = len(gm.graph.nodes), len(fused.graph.nodes)
    yield Notice(f"{count} of {len(pairs)} pairs folded: {before} nodes become {after}; the output changes by at most {change:.1e}")
    return fused, measured, change


def _times(before: fx.GraphModule, after: fx.GraphModule, example: Batch, stop: StopToken) -> tuple[float, float]:
    """Milliseconds (p50) of both graphs for one image, timed in turns."""
    graphs = {name: channels_last(copy.deepcopy(gm)) for name, gm in (("before", before), ("after", after))}
    forms = {name: forward_of(structured(graph)) for name, graph in graphs.items()}
    found = latencies(forms, example.first(1), stop, _SECONDS)
    return found["before"].p50, found["after"].p50


def _rows(pairs: tuple[Pair, ...]) -> tuple[PairRow, ...]:
    return tuple(PairRow(p.conv, p.bn, p.conv_node, p.bn_node, p.reason, p.max_abs_delta) for p in pairs)
