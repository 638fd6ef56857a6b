"""How often something is run to learn what its parts take: a few times, and no longer than a person waits for. Torch-free."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

MOST, LEAST, SECONDS = 6, 2, 0.5


def passes(clock: Callable[[], float] = time.perf_counter) -> Iterator[int]:
    """Numbers of the passes that are due: at least ``LEAST``, then as many of ``MOST`` as begin within ``SECONDS`` after the first. In that
    one, number 0, libraries prepare themselves: its times say nothing."""
    yield 0
    end = clock() + SECONDS
    for count in range(1, MOST):
        if count >= LEAST and clock() >= end:
            return
        yield count
