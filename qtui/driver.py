"""Textual's terminal driver, made to outlast bytes that are no text and a terminal that is gone."""

from __future__ import annotations

import contextlib
import os
import select
import time
from collections.abc import Iterator
from selectors import EVENT_READ, SelectSelector
from threading import Event, Timer
from typing import Any, TextIO

from textual._xterm_parser import XTermParser
from textual.drivers.linux_driver import LinuxDriver
from textual.geometry import Size

from qtui.typed import Typed

_TICK, _SOON = 0.1, 0.02
_PATIENCE = 2.0
_MUCH = 1 << 16
_NEEDED = (
    "run_input_thread", "_run_input_thread", "process_message", "start_application_mode", "stop_application_mode", "close",
    "_get_terminal_size",
)  # fmt: skip


# Set when what is painted may be lost: the terminal does not read, and the program has to go on to its end.
_DISCARD = Event()


def discard_output() -> None:
    """From here on throw away what the terminal does not take at once."""
    _DISCARD.set()


class Output:
    """Writes to the terminal of a stream; once that is gone, what is written goes nowhere and nothing raises."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._encoding = stream.encoding or "utf-8"
        self._descriptor = _unblocking(stream.fileno())
        self._waiting = bytearray()
        self._gone = False
        self.behind = False
        """Whether the terminal has not taken yet what was written."""

    def write(self, text: str) -> int:
        """Take text; it is painted by ``flush``, or when there is much of it."""
        self._waiting += text.encode(self._encoding, "replace")
        if len(self._waiting) >= _MUCH:
            self.flush()
        return len(text)

    def flush(self) -> None:
        """Paint, as fast as the terminal reads."""
        data = memoryview(bytes(self._waiting))
        self._waiting.clear()
        while data and not self._gone:
            try:
                data = data[os.write(self._descriptor, data) :]
            except BlockingIOError:
                if _DISCARD.is_set():
                    break
                self.behind = True
                select.select([], [self._descriptor], [], _TICK)
            except (OSError, ValueError):
                self._gone = True
        self.behind = False

    def fileno(self) -> int:
        """The stream's own descriptor."""
        return self._stream.fileno()


def _unblocking(descriptor: int) -> int:
    """The same terminal opened once more, so that not to block here changes nothing for the programs that share the descriptor, and
    it is still painted on where the descriptor is put to another use."""
    try:
        return os.open(os.ttyname(descriptor), os.O_WRONLY | os.O_NOCTTY | os.O_NONBLOCK)
    except OSError:
        return os.dup(descriptor)


class QtuiDriver(LinuxDriver):
    """Reads through ``Typed``, writes through ``Output``, and ends although nobody reads what is painted."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._file: Any = Output(self._file)

    @property
    def behind(self) -> bool:
        """Whether the terminal reads more slowly than it is written to."""
        return bool(self._file.behind)

    @property
    def window(self) -> Size | None:
        """The size of the terminal's window as the kernel has it; None where it has none, or is gone."""
        try:
            found = os.get_terminal_size(self._file.fileno())
        except (OSError, ValueError):
            return None
        return Size(*found) if all(found) else None

    def _get_terminal_size(self) -> tuple[int, int]:
        # COLUMNS and LINES, which stand first otherwise, may tell of the window that a shell was started in.
        found: tuple[int, int] = self.window or super()._get_terminal_size()
        return found

    def run_input_thread(self) -> None:
        """Pass on what is typed until the app ends; without a terminal, wait for that end."""
        typed, parser, heard = Typed(), XTermParser(self._debug), time.monotonic()
        with SelectSelector() as selector:
            selector.register(self.fileno, EVENT_READ)
            while not self.exit_event.is_set():
                if selector.select(_SOON if typed.waiting else _TICK):
                    data = self._read()
                    if not data:
                        self.exit_event.wait()
                        break
                    text, heard = typed.feed(data), time.monotonic()
                else:
                    text = typed.idle(time.monotonic() - heard)
                parser = self._pass_on(parser, text)
        with contextlib.suppress(Exception):
            list(parser.feed(""))

    def start_application_mode(self) -> None:
        """Start painting."""
        _DISCARD.clear()
        if (repaint := getattr(self._app, "repaint", None)) is not None:
            repaint()
        super().start_application_mode()  # type: ignore[no-untyped-call]

    def stop_application_mode(self) -> None:
        """Give the terminal back."""
        with _patience():
            super().stop_application_mode()

    def close(self) -> None:
        """End the writer."""
        with _patience():
            super().close()

    def _read(self) -> bytes:
        try:
            return os.read(self.fileno, 4096)
        except OSError:
            return b""

    def _pass_on(self, parser: XTermParser, text: str) -> XTermParser:
        """The parser to go on with: one that failed on a sequence is of no more use."""
        try:
            for events in (parser.feed(text) if text else (), parser.tick()):
                for event in events:
                    self.process_message(event)
        except Exception:
            fresh = XTermParser(self._debug)
            for name in ("mouse_pixels", "terminal_size", "terminal_pixel_size"):
                setattr(fresh, name, getattr(parser, name, None))
            return fresh
        return parser


@contextlib.contextmanager
def _patience() -> Iterator[None]:
    """In here a terminal that reads nothing is waited for only so long."""
    timer = Timer(_PATIENCE, discard_output)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def fits() -> bool:
    """Whether the installed Textual has what this driver stands on."""
    return all(callable(getattr(LinuxDriver, name, None)) for name in _NEEDED) and callable(getattr(XTermParser, "tick", None))
