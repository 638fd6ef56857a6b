"""Ctrl-C and its kin, turned into a request to stop."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from types import FrameType, TracebackType
from typing import Any

from engine.events.cancellation import StopToken

STDERR = 2


class Interrupts:
    """While entered: the first signal sets the token, a second Ctrl-C ends the program at once."""

    def __init__(self, stop: StopToken, speaks: bool = True) -> None:
        """Without ``speaks`` nothing is said of it."""
        self._stop, self._speaks = stop, speaks
        self._asking = False
        self._pressed = False
        self._received_any = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interrupts:
        for name in ("SIGINT", "SIGTERM", "SIGHUP"):
            number = getattr(signal, name, None)
            # A signal that was ignored on purpose (nohup) stays ignored.
            if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
                self._before[number] = signal.signal(number, self._received)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextlib.contextmanager
    def asking(self) -> Iterator[None]:
        """Here a signal raises KeyboardInterrupt at once: there is no batch whose end would be waited for."""
        self._asking = True
        try:
            if self._received_any:
                raise KeyboardInterrupt
            yield
        finally:
            self._asking = False

    def _received(self, number: int, frame: FrameType | None) -> None:
        self._stop.set()
        self._received_any = True
        if number == signal.SIGINT:
            if self._pressed:
                signal.signal(signal.SIGINT, signal.default_int_handler)
                raise KeyboardInterrupt
            self._pressed = True
        if self._asking:
            raise KeyboardInterrupt
        if not self._speaks:
            return
        # Not through sys.stderr: a handler may interrupt a write to it, and a buffered stream cannot be entered twice.
        with contextlib.suppress(OSError):
            os.write(STDERR, f"{chr(10) if os.isatty(STDERR) else ''}stopping after this batch …\n".encode())
