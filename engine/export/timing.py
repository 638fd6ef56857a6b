"""Runtimes in turns: the fp32 model, the native path and each file, so that their times compare."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from engine.events.cancellation import StopToken
from engine.events.event import Event
from engine.events.progress import Ticker
from engine.export.base import Runner
from engine.lowering.graph.structured import Structured
from engine.models.memory import laid_out
from engine.tasks.base import Batch, Task
from engine.tasks.timing import Latency

BATCHES = (1, 64)
FP32 = "fp32"
_BLOCKS, _WARM, _LEAST = 5, 3, 3
Times = tuple[Latency, ...]
Entry = dict[str, Any]


def times(
    runners: Mapping[str, Runner],
    task: Task,
    stop: StopToken,
    seconds: float = 1.5,
    stage: str = "export",
    inputs_of: Callable[[Batch], tuple[Tensor, ...]] = lambda part: part.args,
) -> Generator[Event, None, dict[str, Times]]:
    """Milliseconds of each runtime at each of ``BATCHES``, over about ``seconds`` each. ``inputs_of`` gives the
    program's inputs in order; they are in the runtime's own layout before the clock starts.

    The runtimes take turns in blocks of calls: call by call, one would find its caches filled and its threads' cores taken by
    another. A percentile is the median of those of the blocks.
    """
    found: dict[str, list[Latency]] = {name: [] for name in runners}
    ticker = Ticker(stage, len(BATCHES) * _BLOCKS * len(runners), "timings", clock=stop.clock)
    for done, size in enumerate(BATCHES, 1):
        part = next(task.batches("test", batch=size, limit=size))
        held = {name: runner.hold(*inputs_of(part)) for name, runner in runners.items()}
        blocks: dict[str, list[tuple[float, float]]] = {name: [] for name in runners}
        end = stop.clock() + seconds * len(runners)
        # One round of slow runtimes may take longer than all of the time that is given.
        while not all(blocks.values()) or (stop.clock() < end and len(next(iter(blocks.values()))) < _BLOCKS):
            for name, runner in runners.items():
                blocks[name].append(_block(runner.run, held[name], stop, seconds / _BLOCKS))
                yield from ticker.advance()
        ticker.done = done * _BLOCKS * len(runners)
        for name, measured in blocks.items():
            p50, p95 = (statistics.median(block[i] for block in measured) for i in (0, 1))
            found[name].append(Latency(round(p50, 4), round(p95, 4), part.count))
    return {name: tuple(latency) for name, latency in found.items()}


def _block(run: Callable[[Any], Any], x: Any, stop: StopToken, seconds: float) -> tuple[float, float]:
    """p50 and p95 in milliseconds of one call, over ``seconds`` and at least ``_LEAST`` calls, after a few that do not count."""
    spent: list[float] = []
    end = stop.clock() + seconds
    with torch.inference_mode():
        for _ in range(_WARM):
            stop.check()
            run(x)
            if stop.clock() > end:
                break
        end = stop.clock() + seconds
        while len(spent) < _LEAST or stop.clock() < end:
            stop.check()
            start = time.perf_counter()
            run(x)
            spent.append((time.perf_counter() - start) * 1e3)
    spent.sort()
    return spent[len(spent) // 2], spent[min(int(0.95 * len(spent)), len(spent) - 1)]


def fp32_runners(forms: Mapping[str, nn.Module]) -> dict[str, Runner]:
    """The fp32 model's forms as runtimes, by their names."""

    def hold(*inputs: Tensor) -> tuple[Tensor, ...]:
        return laid_out(inputs)

    def run(form: Any) -> Callable[[Any], Any]:
        graph = form.flat if isinstance(form, Structured) else form
        return lambda inputs: graph(*inputs)

    return {name: Runner(name, hold, run(form), "fp32") for name, form in forms.items()}


def rows(entries: Sequence[Entry], forms: Mapping[str, Runner], found: Mapping[str, Times]) -> list[Entry]:
    """The report's ``runtimes``: fp32 in the form that is faster at each batch, then each of ``entries`` that was timed."""
    made: list[Entry] = []
    if forms:
        best = [min(forms, key=lambda name, i=i: found[name][i].p50) for i in range(len(BATCHES))]  # type: ignore[misc]
        name = best[0] if len(set(best)) == 1 else "; ".join(f"{b} at batch {size}" for b, size in zip(best, BATCHES, strict=True))
        made.append(_row(FP32, name, "", "fp32", [found[name][i] for i, name in enumerate(best)]))
    for entry in entries:
        if entry["path"] and entry["format"] in found:
            made.append(_row(entry["format"], entry["runtime"], entry["path"], entry.get("kernel", ""), found[entry["format"]]))
    return made


def _row(kind: str, runtime: str, path: str, kernel: str, latencies: Sequence[Latency]) -> Entry:
    single, batched = (latency.to_dict() for latency in latencies)
    return {"format": kind, "runtime": runtime, "path": path, "kernel": kernel, "latency_ms": single, "latency_batched_ms": batched}
