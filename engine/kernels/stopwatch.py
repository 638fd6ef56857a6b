"""Two ways to do the same, timed in turns; what was measured once on a machine is kept in the user's cache."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import time
from collections.abc import Callable
from pathlib import Path

from engine.events.cancellation import StopToken
from engine.paths import cache_dir, write_atomic
from engine.reading import MB, read_json

Run = Callable[[], object]
Race = tuple[float, float]

_LEAST, _MOST, _SECONDS = 6, 40, 0.005
_LARGEST = 16 * MB


def race(first: Run, second: Run, clock: Callable[[], float] = time.perf_counter) -> Race:
    """Milliseconds of the shortest call of each, called in turns.

    The shortest is what the work itself takes: whatever else a machine does only adds to it (as Python's ``timeit`` says).
    """
    best = [math.inf, math.inf]
    for run in (first, second):
        run()
    end = clock() + _SECONDS
    for count in range(_MOST):
        if count >= _LEAST and clock() >= end:
            break
        for i, run in enumerate((first, second)):
            start = clock()
            run()
            best[i] = min(best[i], clock() - start)
    return round(best[0] * 1e3, 4), round(best[1] * 1e3, 4)


class Stopwatch:
    """Races by key. One that was run before on this machine is not run again, so that a recipe gives the same plan twice;
    once ``seconds`` are over no further one is run. ``quiet`` is whether the machine had little else to do at the start."""

    def __init__(self, stop: StopToken, seconds: float, machine: str | None = None, racing: Callable[..., Race] = race) -> None:
        self._stop, self._racing = stop, racing
        self.quiet = not _busy()
        self._end = stop.clock() + seconds
        self._file = cache_dir() / f"timings-{machine}.json" if machine else None
        self._known = _read(self._file) if self._file else {}
        self._new = False

    def race(self, key: str, make: Callable[[], tuple[Run, Run]]) -> Race | None:
        """Milliseconds of the two functions that ``make`` gives; None where there is no time left. Raises Cancelled.

        Where the second wins they run again: it has to win twice.
        """
        self._stop.check()
        if key not in self._known:
            if self._stop.clock() > self._end:
                return None
            runs = make()
            first, second = self._racing(*runs)
            if second <= first:
                again = self._racing(*runs)
                first, second = min(first, again[0]), min(second, again[1])
            self._known[key] = first, second
            self._new = True
        return self._known[key]

    def keep(self) -> None:
        """Write what was measured to the cache; not on a machine that is busy with something else, where it says little."""
        if self._file is None or not self._new or not self.quiet or _busy():
            return
        # A cache that cannot be written costs the measurement again, no more.
        with contextlib.suppress(OSError):
            write_atomic(self._file, json.dumps(self._known).encode())


def machine_key() -> str:
    """Changes with the processor, torch, the number of threads and the kernels' own code."""
    import torch

    from engine.kernels.probe import machine_key

    code = "".join(path.read_text(encoding="utf-8") for path in sorted(Path(__file__).parent.rglob("*.py")))
    text = f"{machine_key()}\n{torch.get_num_threads()}\n{code}"
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _read(path: Path) -> dict[str, Race]:
    try:
        found = read_json(path, _LARGEST)
        races = {str(key): (float(one), float(other)) for key, (one, other) in found.items()}
        return races if all(min(times) > 0 for times in races.values()) else {}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def _busy() -> bool:
    # This process alone brings the load to the number of its threads.
    with contextlib.suppress(OSError, AttributeError):
        return os.getloadavg()[0] > 1.25 * (os.cpu_count() or 1)
    return False
