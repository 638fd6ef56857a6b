"""Where events wait between the engine's thread and the screen: bounded, whatever rate they come at."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from engine.events import event as ev

_TALK = 500


class Mailbox:
    """``post`` from any thread, ``drain`` from the app's. Of events that only replace one another the latest waits; of
    lines for the log at most ``_TALK`` wait; nothing else is ever dropped."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._lock = threading.Lock()
        self._clock = clock
        self._waiting: dict[int, tuple[float, ev.Event]] = {}
        self._slots: dict[tuple[str, str], int] = {}
        self._talk: list[int] = []
        self._left_out = 0
        self._next = 0

    def post(self, event: ev.Event) -> None:
        with self._lock:
            number, self._next = self._next, self._next + 1
            slot = _slot(event)
            if slot is not None:
                self._waiting.pop(self._slots.get(slot, -1), None)
                self._slots[slot] = number
            elif isinstance(event, ev.Notice):
                self._talk.append(number)
                if len(self._talk) > _TALK:
                    self._waiting.pop(self._talk.pop(0), None)
                    self._left_out += 1
            self._waiting[number] = (self._clock(), event)

    def drain(self) -> list[tuple[float, ev.Event]]:
        """What waits, in order, each with the time at which it was posted."""
        with self._lock:
            waiting = list(self._waiting.values())
            if self._left_out:
                waiting.insert(0, (self._clock(), ev.Notice(f"{self._left_out} lines came too fast and were left out", "warning")))
            self._waiting, self._slots, self._talk, self._left_out = {}, {}, [], 0
            return waiting


def _slot(event: ev.Event) -> tuple[str, str] | None:
    match event:
        case ev.Progress() | ev.Step():
            return type(event).__name__, event.stage
        case ev.Ranges():
            return "Ranges", ""
    return None
