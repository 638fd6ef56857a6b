"""How long forms of a model take, timed in turns so that a noisy neighbour disturbs all alike."""

from __future__ import annotations

import time
from collections.abc import Generator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from engine.events.cancellation import StopToken
from engine.events.event import Event
from engine.tasks.base import Batch, Forward, Task

LEAST = 10
WARM_UP = 5


@dataclass(frozen=True)
class Latency:
    """Milliseconds of one call on ``batch`` items."""

    p50: float
    p95: float
    batch: int

    def to_dict(self) -> dict[str, float]:
        return asdict(self)


@dataclass(frozen=True)
class Timing:
    """One form: ``latencies`` by the workload's key; ``details`` are what the task's report adds to them."""

    latencies: Mapping[str, Latency]
    details: Mapping[str, Any] = field(default_factory=dict)


def time_batches(task: Task, forms: Mapping[str, Forward], stop: StopToken) -> Generator[Event, None, dict[str, Timing]]:
    """``forms`` on the first items of the test split, for each of the task's workloads. Raises Cancelled on stop."""
    found: dict[str, dict[str, Latency]] = {name: {} for name in forms}
    for workload in task.workloads:
        part = next(task.batches("test", batch=workload.batch, limit=workload.batch))
        for name, latency in latencies(forms, part, stop).items():
            found[name][workload.key] = latency
    yield from ()
    return {name: Timing(times) for name, times in found.items()}


def latencies(forms: Mapping[str, Forward], batch: Batch, stop: StopToken, seconds: float = 1.5) -> dict[str, Latency]:
    """Time the forms in turns, for ``seconds`` and at least ``LEAST`` times each. Raises Cancelled on stop."""
    batch = batch.laid_out()
    spent: dict[str, list[float]] = {name: [] for name in forms}
    with torch.inference_mode():
        for run in forms.values():
            for _ in range(WARM_UP):
                run(batch)
        end = stop.clock() + seconds
        while stop.clock() < end or min(map(len, spent.values())) < LEAST:
            stop.check()
            for name, run in forms.items():
                start = time.perf_counter()
                run(batch)
                spent[name].append((time.perf_counter() - start) * 1e3)
    found = {name: percentiles(times) for name, times in spent.items()}
    return {name: Latency(round(p50, 4), round(p95, 4), batch.count) for name, (p50, p95) in found.items()}


def percentiles(times: Sequence[float]) -> tuple[float, float]:
    """p50 and p95 of one or more times."""
    ordered = sorted(times)
    return ordered[len(ordered) // 2], ordered[min(int(0.95 * len(ordered)), len(ordered) - 1)]
