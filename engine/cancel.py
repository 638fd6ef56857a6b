"""A request to stop, checked at every batch and layer."""

from __future__ import annotations

import threading

from engine.errors import Cancelled


class StopToken:
    """Set from any thread or a signal handler; ``check`` raises Cancelled from then on."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def set(self) -> None:
        self._event.set()

    def check(self) -> None:
        if self._event.is_set():
            raise Cancelled
