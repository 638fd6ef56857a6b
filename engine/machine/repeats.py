"""How often something is run to learn what its parts take: a few times, and no longer than a person waits for. Torch-free."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

MOST, LEAST, SECONDS = 5, 2, 0.5


def passes(clock: Callable[[], float] = time.perf_counter) -> Iterator[int]:
    """Numbers of the passes that are due: at least ``LEAST``, then as many of ``MOST`` as begin within ``SECONDS``."""
    end = clock() + SECONDS
    for count in range(MOST):
        if count >= LEAST and clock() >= end:
            return
        yield count
