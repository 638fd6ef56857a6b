"""What a run is asked while it goes on: to stop, to pause, to train no further. Looked at in every batch and layer."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from queue import SimpleQueue

from engine.errors import Cancelled, EngineError


class Interrupted(EngineError):
    """Work that was done while a question was open ends without a result: the question has its answer."""


class StopToken:
    """One run's requests, made from any thread or a signal handler; a request to stop or to end training is for good.

    ``check`` belongs to the thread that runs: it raises Cancelled once stopped and waits while paused.
    """

    def __init__(self) -> None:
        self._stopped = self._enough = self._answered = self._beside = False
        # Reentrant: a signal handler may come in between, in the thread that holds it.
        self._lock = threading.RLock()
        # Seconds of past pauses, and when the present one began. Replaced as a whole, so that it is read without the lock.
        self._pauses: tuple[float, float | None] = (0.0, None)
        # A call that comes just before the wait is still in the queue; a condition variable would miss it.
        self._wake: SimpleQueue[None] = SimpleQueue()

    def set(self) -> None:
        self._stopped = True
        self._wake.put(None)

    def pause(self) -> None:
        with self._lock:
            past, since = self._pauses
            self._pauses = (past, time.perf_counter() if since is None else since)

    def go_on(self) -> None:
        with self._lock:
            past, since = self._pauses
            if since is None:
                return
            self._pauses = (past + time.perf_counter() - since, None)
        self._wake.put(None)

    @property
    def paused(self) -> bool:
        return self._pauses[1] is not None

    def enough(self) -> None:
        """Training is to end with the best epoch so far, or with the first where none was judged yet. The run goes on."""
        self._enough = True

    @property
    def wants_enough(self) -> bool:
        return self._enough

    def interrupt(self, asked: bool = True) -> None:
        """What is done ``beside`` the run is to end. Not ``asked``, an earlier request is forgotten: whoever asks for such work says so
        before, so that an answer that comes before it has begun is not lost."""
        self._answered = asked

    @contextmanager
    def beside(self) -> Iterator[None]:
        """Work that an answer to the open question ends: ``check`` raises Interrupted in here."""
        self._beside = True
        try:
            yield
        finally:
            self._beside = False

    def check(self) -> None:
        """Return, at once or when a pause ends. Raises Cancelled when the run is to stop, paused or not, and Interrupted ``beside``."""
        while self.paused and not self._stopped:
            self._wake.get()
        if self._stopped:
            raise Cancelled
        if self._beside and self._answered:
            raise Interrupted("an answer came")

    def clock(self) -> float:
        """Seconds as of ``time.perf_counter``, which stand still during a pause."""
        past, since = self._pauses
        return (time.perf_counter() if since is None else since) - past
