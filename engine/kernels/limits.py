"""What the threads of this processor reach at most, as measured: multiply-adds of int8 in a large matrix product, bytes of a plain read.

The best of all measurements on a machine is kept beside what the probe found: other work on it takes from one, and adds to none.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import cycle
from pathlib import Path

import torch

from engine.errors import EngineError
from engine.kernels.base import IntegerLayer
from engine.kernels.choose import kernels_for
from engine.kernels.probe import Machine, machine_key
from engine.numerics.qparams import QParams
from engine.paths import cache_dir, write_atomic
from engine.reading import MB, read_json

# Rows, inputs and outputs of the product: weights and activations lie in a core's cache in parts, and there is work for all threads.
_SHAPES = ((128, 1024, 1024), (512, 2048, 2048))
# Bytes that are read in turns, in parts that are short beside what a thread may run at a stretch.
_READ, _PARTS = 1 << 28, 8
_SECONDS = 0.4


@dataclass(frozen=True)
class Limits:
    """``macs`` are multiply-adds a second of ``kernel``, ``bytes`` those that a plain read moves from memory, on ``threads``."""

    macs: float
    bytes: float
    threads: int
    kernel: str

    def to_dict(self) -> dict[str, object]:
        """As ``qtui doctor`` and a report have them: an operation is a multiplication or an addition."""
        return {"threads": self.threads, "kernel": self.kernel, "peak_ops_per_s": 2 * self.macs, "read_bytes_per_s": self.bytes}


def known(machine: Machine) -> Limits | None:
    """Those that were measured on ``machine`` before, or None."""
    kernel = kernels_for(machine)[0]
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
        found = read_json(_place(), MB)
        before = Limits(float(found["macs"]), float(found["bytes"]), torch.get_num_threads(), str(found["kernel"]))
        return before if before.macs > 0 and before.bytes > 0 and before.kernel == kernel.name and machine.device == "cpu" else None
    return None


def limits(machine: Machine, again: bool = False) -> Limits | None:
    """Those of ``machine``, as they are known or measured in less than two seconds; ``again`` measures in either case. None where no
    integer kernel runs, or there is no memory to measure in."""
    kernel = kernels_for(machine)[0]
    if kernel.simulated or machine.device != "cpu":
        return None
    before = known(machine)
    if before is not None and not again:
        return before
    try:
        macs, read = max(map(_product(machine), _SHAPES)), _read()
    except (EngineError, RuntimeError, MemoryError):
        # There is no room for it: what is told of a run does not end it.
        return before
    found = Limits(
        max(macs, before.macs if before else 0.0), max(read, before.bytes if before else 0.0), torch.get_num_threads(), kernel.name
    )
    with contextlib.suppress(OSError):
        write_atomic(_place(), json.dumps(asdict(found)).encode())
    return found


def _place() -> Path:
    return cache_dir() / f"limits-{machine_key()}-{torch.get_num_threads()}.json"


def _product(machine: Machine) -> Callable[[tuple[int, int, int]], float]:
    """Multiply-adds a second of uint8 by int8 of a shape."""
    kernel = kernels_for(machine)[0]

    def rate(shape: tuple[int, int, int]) -> float:
        rows, inputs, out = shape
        draw = torch.Generator().manual_seed(0)
        weight = torch.randint(-127, 128, (out, inputs), generator=draw, dtype=torch.int8)
        top = (1 << machine.activation_bits) - 1
        x = torch.randint(0, top + 1, (rows, inputs), generator=draw, dtype=torch.uint8)
        grid = QParams(0.02, top // 2, top)
        run = kernel.build(IntegerLayer("linear", weight, torch.full((out,), 0.01), None, grid, grid))
        return rows * inputs * out / _least(lambda: run(x))

    return rate


def _read() -> float:
    """Bytes a second of adding up what no cache holds."""
    parts = cycle(torch.zeros(_READ // 8, dtype=torch.int64).chunk(_PARTS))
    return _READ / _PARTS / _least(lambda: next(parts).sum())


def _least(call: Callable[[], object]) -> float:
    """Seconds of the quickest of some calls."""
    call()
    least, end = float("inf"), time.perf_counter() + _SECONDS
    while True:
        start = time.perf_counter()
        call()
        now = time.perf_counter()
        least = min(least, now - start)
        if now > end:
            return least
