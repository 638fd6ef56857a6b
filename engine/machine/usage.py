"""What this process takes of its machine: processors, memory, GPU, disk. Torch-free; psutil is imported when it is first asked."""

from __future__ import annotations

import contextlib
import sys
import time
from dataclasses import dataclass
from functools import cache
from typing import Any

from engine.machine.processor import cores


@dataclass(frozen=True)
class Usage:
    """Of the process of ``rank`` on ``host``: ``cpu`` processors that it kept busy since the last look, of ``cores`` that it may use;
    ``memory_bytes`` that it holds, ``peak_bytes`` at most so far; ``written_bytes`` to disk so far. ``gpu`` (0..1) and
    ``gpu_memory_bytes`` are those of the GPU that it computes on, whoever uses it. None is what the system does not tell."""

    rank: int
    host: str
    cpu: float
    cores: float
    memory_bytes: int
    peak_bytes: int
    written_bytes: int | None = None
    gpu: float | None = None
    gpu_memory_bytes: int | None = None


class Meter:
    """Looks at this process, again and again."""

    def __init__(self, rank: int = 0, host: str = "") -> None:
        import psutil

        self._rank, self._host = rank, host
        self._process = psutil.Process()
        self._written = self._bytes_written()
        self._before = self._spent()

    def look(self) -> Usage:
        """What the process takes now; ``cpu`` is of the time since the last look."""
        (at, spent), before = self._spent(), self._before
        self._before = (at, spent)
        memory = self._process.memory_info().rss
        written = self._bytes_written()
        gpu, gpu_memory = _gpu()
        return Usage(
            self._rank, self._host, round(max(spent - before[1], 0.0) / max(at - before[0], 1e-3), 2), _allowed(), memory,
            max(_peak(), memory), None if written is None or self._written is None else written - self._written, gpu, gpu_memory,
        )  # fmt: skip

    def _spent(self) -> tuple[float, float]:
        times = self._process.cpu_times()
        return time.perf_counter(), times.user + times.system

    def _bytes_written(self) -> int | None:
        # Not on every system, and not in every container.
        with contextlib.suppress(Exception):
            return int(self._process.io_counters().write_bytes)
        return None


@cache
def _allowed() -> float:
    known = cores()
    limits = [float(count) for key in ("allowed", "container") if (count := known[key])]
    return min(limits, default=float(known["processors"] or 1))


def _peak() -> int:
    """The most memory that the process has held."""
    with contextlib.suppress(ImportError):
        import resource

        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most if sys.platform == "darwin" else most * 1024
    return 0


def _gpu() -> tuple[float | None, int | None]:
    """Use (0..1) and bytes in use of the GPU that torch computes on; None where it computes on none, or nothing tells."""
    torch: Any = sys.modules.get("torch")
    with contextlib.suppress(Exception):
        if torch is not None and torch.cuda.is_initialized():
            index = torch.cuda.current_device()
            free, total = torch.cuda.mem_get_info(index)
            return _gpu_use(str(torch.cuda.get_device_properties(index).uuid)), total - free
    return None, None


def _gpu_use(uuid: str) -> float | None:
    """By nvidia-ml-py, where that is installed."""
    with contextlib.suppress(Exception):
        handle, library = _handle(uuid if uuid.startswith("GPU-") else f"GPU-{uuid}")
        return float(library.nvmlDeviceGetUtilizationRates(handle).gpu) / 100
    return None


@cache
def _handle(uuid: str) -> tuple[Any, Any]:
    from importlib import import_module

    library: Any = import_module("pynvml")
    library.nvmlInit()
    return library.nvmlDeviceGetHandleByUUID(uuid), library
