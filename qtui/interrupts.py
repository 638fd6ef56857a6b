"""Ctrl-C and its kin, turned into a request to stop."""

from __future__ import annotations

import contextlib
import os
import select
import signal
from collections.abc import Iterator
from types import FrameType, TracebackType
from typing import Any, TextIO

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
        self._woken: tuple[int, int] | None = None
        self._wakes = -1

    def __enter__(self) -> Interrupts:
        for name in ("SIGINT", "SIGTERM", "SIGHUP"):
            number = getattr(signal, name, None)
            # A signal that was ignored on purpose (nohup) stays ignored.
            if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
                self._before[number] = signal.signal(number, self._received)
        self._woken = os.pipe()
        for end in self._woken:
            os.set_blocking(end, False)
        self._wakes = signal.set_wakeup_fd(self._woken[1], warn_on_full_buffer=False)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        signal.set_wakeup_fd(self._wakes)
        for number, handler in self._before.items():
            signal.signal(number, handler)
        for end in self._woken or ():
            os.close(end)
        self._woken = None

    @contextlib.contextmanager
    def asking(self, source: TextIO | None = None) -> Iterator[None]:
        """Here a signal raises KeyboardInterrupt at once: there is no batch whose end would be waited for. Where ``source`` is a
        terminal it has a line when the block begins."""
        self._asking = True
        try:
            if self._received_any:
                raise KeyboardInterrupt
            if source is not None and source.isatty():
                self._wait(source)
            yield
        finally:
            self._asking = False

    def _wait(self, source: TextIO) -> None:
        """A signal that comes just ahead of a read is handled when the read is done: here it ends the wait."""
        while self._woken is not None:
            ready, _, _ = select.select([source.fileno(), self._woken[0]], [], [])
            if source.fileno() in ready:
                return
            with contextlib.suppress(BlockingIOError):
                os.read(self._woken[0], 512)

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
