"""Runtimes in turns: the fp32 model, the native path and each file, so that their times compare."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any

import torch

from engine.events.cancellation import StopToken
from engine.events.event import Event
from engine.events.progress import Ticker
from engine.export.base import Runner
from engine.report.figures import LATENCY_KEYS
from engine.tasks.base import Forward, Task
from engine.tasks.timing import Latency, percentiles

FP32 = "fp32"
_BLOCKS, _WARM, _LEAST = 5, 3, 3
Times = tuple[Latency, ...]
Entry = dict[str, Any]


def times(
    runners: Mapping[str, Runner], task: Task, stop: StopToken, seconds: float = 1.5, stage: str = "export"
) -> Generator[Event, None, dict[str, Times]]:
    """Milliseconds of each runtime for each of the task's workloads, over about ``seconds`` each. Inputs are in the runtime's own
    layout before the clock starts.

    The runtimes take turns in blocks of calls: call by call, one would find its caches filled and its threads' cores taken by
    another. A percentile is the median of those of the blocks.
    """
    found: dict[str, list[Latency]] = {name: [] for name in runners}
    ticker = Ticker(stage, len(task.workloads) * _BLOCKS * len(runners), "timings", clock=stop.clock)
    for done, workload in enumerate(task.workloads, 1):
        part = next(task.compared(batch=workload.batch, limit=workload.batch))
        held = {name: runner.hold(part) for name, runner in runners.items()}
        blocks: dict[str, list[tuple[float, float]]] = {name: [] for name in runners}
        end = stop.clock() + seconds * len(runners)
        # One round of slow runtimes may take longer than all of the time that is given.
        while not all(blocks.values()) or (stop.clock() < end and len(next(iter(blocks.values()))) < _BLOCKS):
            for name, runner in runners.items():
                blocks[name].append(_block(runner.call, held[name], stop, seconds / _BLOCKS))
                yield from ticker.advance()
        ticker.done = done * _BLOCKS * len(runners)
        for name, measured in blocks.items():
            p50, p95 = (statistics.median(block[i] for block in measured) for i in (0, 1))
            found[name].append(Latency(round(p50, 4), round(p95, 4), part.count))
    return {name: tuple(latency) for name, latency in found.items()}


def _block(call: Callable[[Any], Any], held: Any, stop: StopToken, seconds: float) -> tuple[float, float]:
    """p50 and p95 in milliseconds of one call, over ``seconds`` and at least ``_LEAST`` calls, after a few that do not count."""
    spent: list[float] = []
    end = stop.clock() + seconds
    with torch.inference_mode():
        for _ in range(_WARM):
            stop.check()
            call(held)
            if stop.clock() > end:
                break
        end = stop.clock() + seconds
        while len(spent) < _LEAST or stop.clock() < end:
            stop.check()
            start = time.perf_counter()
            call(held)
            spent.append((time.perf_counter() - start) * 1e3)
    return percentiles(spent)


def fp32_runners(forms: Mapping[str, Forward]) -> dict[str, Runner]:
    """The fp32 model's forms as runtimes, by their names."""
    return {name: Runner(name, lambda batch: batch.laid_out(), form, "fp32") for name, form in forms.items()}


def latencies(times: Times) -> Entry:
    """An entry's latencies, of the task's first two workloads; none where a task has no second."""
    return {key: {} for key in LATENCY_KEYS} | dict(zip(LATENCY_KEYS, (one.to_dict() for one in times), strict=False))


def rows(entries: Sequence[Entry], task: Task, forms: Mapping[str, Runner], found: Mapping[str, Times]) -> list[Entry]:
    """The report's ``runtimes``: fp32 in the form that is faster at each workload, then each of ``entries`` that was timed."""
    made: list[Entry] = []
    if forms:
        workloads = task.workloads[:2]
        best = [min(forms, key=lambda name, i=i: found[name][i].p50) for i in range(len(workloads))]  # type: ignore[misc]
        name = best[0] if len(set(best)) == 1 else "; ".join(f"{b} {w.phrase}" for b, w in zip(best, workloads, strict=True))
        times = latencies(tuple(found[name][i] for i, name in enumerate(best)))
        made.append({"format": FP32, "runtime": name, "path": "", "kernel": "fp32", **times})
    for entry in entries:
        if entry["path"] and entry["format"] in found:
            about = {"format": entry["format"], "runtime": entry["runtime"], "path": entry["path"], "kernel": entry.get("kernel", "")}
            made.append({**about, **latencies(found[entry["format"]])})
    return made


def known_rows(entries: Sequence[Entry], fp32: Mapping[str, Any], native: Mapping[str, Any]) -> list[Entry]:
    """The report's ``runtimes`` where files are timed each by itself: fp32 and this program's kernels as the run timed them, then
    each file; empty where nothing else was timed."""
    timed = [made for made in entries if made["verified"] and made["format"] != "safetensors"]
    if not timed:
        return []
    own = ("latency_ms", "latency_batched_ms", "tokens_per_second")
    forms = ((FP32, "torch", "fp32", fp32), ("safetensors", "qtui", native.get("kernel", ""), native))
    known = [
        {"format": name, "runtime": runtime, "path": "", "kernel": kernel, **{key: form.get(key) for key in own}}
        for name, runtime, kernel, form in forms
    ]
    keys = ("format", "runtime", "path", "kernel", *own)
    return [*known, *({key: made.get(key) for key in keys} for made in timed)]
