"""A lost connection, ``kill`` and the like, turned into one call in the app's event loop."""

from __future__ import annotations

import asyncio
import contextvars
import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

_NAMES = ("SIGHUP", "SIGTERM", "SIGINT")
_PATIENCE, _STEP = 1.0, 0.2


class Hangup:
    """From ``install`` to ``restore`` the first of the signals calls ``callback(number)`` in the loop, later ones nothing.

    Installed in ``on_mount``: Textual has started its terminal by then. The callback asks the work to stop and ends the app when it has.
    """

    def __init__(self, callback: Callable[[int], object]) -> None:
        self._callback = callback
        self._before: dict[int, Any] = {}
        self._received = False
        self._restored = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._context = contextvars.Context()

    def install(self) -> None:
        """Take the signals over, in the main thread, with the loop running."""
        if threading.current_thread() is not threading.main_thread():
            return
        self._loop, self._context = asyncio.get_running_loop(), contextvars.copy_context()
        for name in _NAMES:
            number = getattr(signal, name, None)
            # A signal that was ignored on purpose (nohup) stays ignored.
            if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
                # Not loop.add_signal_handler: a loop that waits for a terminal nobody reads would never come to it.
                self._before[number] = signal.signal(number, self._signalled)

    def restore(self) -> None:
        """Give the signals back; after one was received they stay without effect, for the program ends now."""
        self._restored.set()
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_IGN if self._received else handler)
        self._before.clear()

    def _signalled(self, number: int, frame: FrameType | None) -> None:
        if self._received or self._loop is None or self._loop.is_closed():
            return
        self._received = True
        self._loop.call_soon_threadsafe(self._callback, number, context=self._context)
        threading.Thread(target=self._unblock, args=(self._loop,), name="hangup", daemon=True).start()

    def _unblock(self, loop: asyncio.AbstractEventLoop) -> None:
        """A loop that does not answer stands in a write to a terminal nobody reads: give up the picture, not the end."""
        while not self._restored.wait(_STEP):
            answered = threading.Event()
            try:
                loop.call_soon_threadsafe(answered.set)
            except RuntimeError:
                return
            if not answered.wait(_PATIENCE):
                from qtui.driver import discard_output

                discard_output()
