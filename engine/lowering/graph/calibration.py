"""calibrate: one pass over training images; only ranges, histograms and the moments of what layers read are kept."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Generator, Iterator, Mapping

from torch import fx

from engine.errors import EngineError
from engine.events.cancellation import StopToken
from engine.events.event import Event, Ranges
from engine.events.progress import Every, Ticker
from engine.lowering.graph.call import inputs_of
from engine.lowering.graph.layout import Layout
from engine.lowering.graph.observe import Observed, Reader
from engine.lowering.graph.ranges import Watch
from engine.machine import ranks
from engine.models.memory import channels_last
from engine.numerics.qparams import QParams
from engine.tasks.base import Batch, Task

_CACHED = 3 * 2**23  # bytes; an allocator fetches blocks of 32 MiB from the system anew each time
_LOOK = 0.02  # seconds of every quarter of a second for clips that are costly to find


def calibrate(
    gm: fx.GraphModule, layout: Layout, task: Task, items: int, batch: int, device: str, stop: StopToken, attended: bool = False,
    readers: Mapping[str, Reader] | None = None,
) -> Generator[Event, None, Mapping[str, QParams]]:  # fmt: skip
    """The grid of each value class, from the first ``items`` of the training split; with ``attended`` also ``Ranges``. ``readers``
    are given what each layer node reads in the fp32 graph."""
    total = calibration_count(task, items)
    graph = channels_last(copy.deepcopy(gm), device)
    observed = Observed(graph, layout, counting=attended, at_once=cached(graph) if device == "cpu" else batch, readers=readers)
    watch = Watch(observed, layout) if attended else None
    batches = task.calibration_batches(batch=batch, limit=items, device=device)

    def observe(part: Batch) -> None:
        observed.batch(*inputs_of(gm, part), count=part.count)

    yield from observing(batches, observe, watch, Ticker("calibrate", total, task.unit, clock=stop.clock), stop, observed)
    observed.merge()
    grids = observed.grids()
    if watch:
        yield Ranges(watch.seen, total, watch.last(grids), final=True)
    return grids


def calibration_count(task: Task, items: int) -> int:
    """How many items calibrate. Raises EngineError where there are none."""
    total = task.calibration_count(items)
    if total == 0:
        raise EngineError(
            f"the calibration set is empty: data.calibration must be 1 or more and the training split must hold {task.plural}"
        )
    return total


def observing(
    batches: Iterator[Batch], observe: Callable[[Batch], None], watch: Watch | None, ticker: Ticker, stop: StopToken,
    shared: Observed | None = None,
) -> Generator[Event, None, None]:  # fmt: skip
    """``observe`` each of ``batches``; ``watch`` tells the ranges on the way. With ``shared``, which is what looks at them, each rank has
    its part of them."""
    due = Every(0.25, stop.clock)
    numbered = ranks.shares(batches) if shared is not None else ((index, part, True) for index, part in enumerate(batches))
    for index, part, is_own in numbered:
        stop.check()
        if shared is not None:
            shared.turn(index)
        if is_own:
            observe(part)
        elif shared is not None:
            shared.skip(part.count)
        if watch:
            watch.batch(part.count)
            if due():
                yield Ranges(watch.seen, ticker.total, watch.look(_LOOK))
        yield from ticker.advance(part.count)


def cached(gm: fx.GraphModule) -> int:
    """How many images to take at a time, so that the largest of their values is still in the cache where the next layer, or an
    observer, reads it."""
    sizes = [math.prod(size or 1 for size in node.meta["shape"]) for node in gm.graph.nodes if "shape" in node.meta]
    return max(_CACHED // (4 * max(sizes, default=1)), 1)
