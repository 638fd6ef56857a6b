"""A terminal made of a pseudo-terminal: starts a program, types, reads what it paints, and takes the time.

The screen itself needs pyte; everything else is the standard library. Bytes are kept and parsed only when the screen is asked for,
so that counting a flood costs no parsing.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import tempfile
import termios
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

KEYS = {
    "up": b"\x1b[A", "down": b"\x1b[B", "right": b"\x1b[C", "left": b"\x1b[D", "enter": b"\r", "esc": b"\x1b", "tab": b"\t",
    "space": b" ", "backspace": b"\x7f", "ctrl+c": b"\x03", "ctrl+p": b"\x10", "ctrl+q": b"\x11", "pagedown": b"\x1b[6~",
    "pageup": b"\x1b[5~", "home": b"\x1b[H", "end": b"\x1b[F", "f1": b"\x1bOP",
}  # fmt: skip
# They change what an app paints, so a caller names the ones it wants.
SCRUBBED = re.compile(
    "NO_COLOR|COLORTERM|FORCE_COLOR|CLICOLOR.*|TEXTUAL.*|QTUI_.*|SSH_.*|TMUX.*|STY|ZELLIJ.*|TERM_PROGRAM.*|LC_TERMINAL.*|ESCDELAY"
)
SYNCHRONIZED = b"\x1b[?2026$p"
FRAME = b"\x1b[?2026h"
# pyte would print the last letter of these private sequences.
UNKNOWN = re.compile(rb"\x1b\[[?>=<][0-9;]*\$?[pu]")
UNFINISHED = re.compile(rb"(?:\x1b(?:\[[?>=<]?[0-9;]*\$?)?)?\Z")


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """This process's environment without what would change the picture, for a terminal of 256 colours."""
    kept = {key: value for key, value in os.environ.items() if not SCRUBBED.fullmatch(key)} | {"QTUI_HINTS": "0"}
    # Bytecode is kept, as for any installed program; compiling at each start would be measured otherwise.
    kept.pop("PYTHONDONTWRITEBYTECODE", None)
    kept.setdefault("PYTHONPYCACHEPREFIX", str(Path(tempfile.gettempdir()) / "qtui-bench-bytecode"))
    return kept | {"TERM": "xterm-256color"} | dict(extra or {})


class PtyTerminal:
    """``with PtyTerminal([python, "app.py"]) as terminal``: the program is killed at the end if it still runs."""

    def __init__(
        self,
        command: Sequence[str],
        size: tuple[int, int] = (80, 24),
        env: Mapping[str, str] | None = None,
        cwd: str | Path | None = None,
        before: Callable[[], object] | None = None,
    ) -> None:
        """``before`` runs in the child ahead of the program."""
        self.size = size
        self.received = bytearray()
        self.ended = False
        self._parsed = 0
        self._screen: Any = None
        self._stream: Any = None
        self._answered = 0
        self._master, slave = pty.openpty()
        self._set_size()

        def prepare() -> None:
            # A closed terminal hangs up on the programs whose controlling terminal it is, and on nobody else.
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)
            if before is not None:
                before()

        self.started = time.perf_counter()
        streams: dict[str, Any] = {"stdin": slave, "stdout": slave, "stderr": slave}
        self.process = subprocess.Popen(list(command), start_new_session=True, env=environment(env), cwd=cwd, preexec_fn=prepare, **streams)
        os.close(slave)

    def __enter__(self) -> PtyTerminal:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()
        if self.process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def close(self) -> None:
        """Close the terminal, as a lost connection does."""
        if self._master >= 0:
            os.close(self._master)
        self._master = -1

    def kill(self, number: int) -> None:
        """Send a signal to the program."""
        self.process.send_signal(number)

    def resize(self, columns: int, rows: int) -> None:
        """Change the size of the terminal; the kernel tells the program."""
        self.size = (columns, rows)
        self._set_size()
        if self._screen is not None:
            self._parse()
            self._screen.resize(rows, columns)

    def write(self, data: bytes) -> None:
        """Type these bytes, reading meanwhile, so that neither side waits for the other for ever."""
        while data:
            readable, writable, _ = select.select([self._master], [self._master], [], 5)
            if readable:
                self.read(0)
            if writable:
                data = data[os.write(self._master, data[:512]) :]
            if self.ended or not (readable or writable):
                raise TimeoutError("the program does not read what is typed")

    def press(self, *keys: str) -> None:
        """Type keys, by their name or as themselves."""
        for key in keys:
            self.write(KEYS.get(key, key.encode()))

    def slowly(self, keys: bytes, rate: int, seconds: float) -> int:
        """Type ``keys`` and read for that long as a slow line does, ``rate`` bytes a second: how many bytes came."""
        if keys:
            os.write(self._master, keys)
        end, total = time.perf_counter() + seconds, 0
        while time.perf_counter() < end and not self.ended:
            time.sleep(0.05)
            if select.select([self._master], [], [], 0)[0]:
                data = os.read(self._master, max(rate // 20, 1))
                self.received += data
                total += len(data)
        return total

    def read(self, timeout: float) -> int:
        """Take what is painted within ``timeout`` seconds, one read at most: how many bytes; ``ended`` is set at the end."""
        if self.ended or not select.select([self._master], [], [], timeout)[0]:
            return 0
        try:
            data = os.read(self._master, 1 << 16)
        except OSError:
            data = b""
        self.received += data
        self.ended = not data
        self._answer()
        return len(data)

    def drain(self, seconds: float) -> int:
        """Read for that long: how many bytes came."""
        end, total = time.perf_counter() + seconds, 0
        while (left := end - time.perf_counter()) > 0 and not self.ended:
            total += self.read(left)
        return total

    def quiet(self, gap: float = 0.03, limit: float = 0.3) -> None:
        """Read until nothing came for ``gap`` seconds, at most ``limit`` seconds."""
        end = time.perf_counter() + limit
        while time.perf_counter() < end and self.read(gap):
            pass

    def wait_for(self, wanted: str | Callable[[PtyTerminal], bool], timeout: float = 40) -> float:
        """Read until the text is on the screen, or the condition holds: seconds that took; TimeoutError shows the screen."""
        start = time.perf_counter()
        holds = wanted if callable(wanted) else lambda terminal: wanted in terminal.text
        while not holds(self):
            if self.ended or time.perf_counter() - start > timeout:
                raise TimeoutError(f"not seen within {timeout} s: {wanted}\n{self.text}")
            self.read(0.05)
        return time.perf_counter() - start

    def first_frame(self, timeout: float = 20, size: int = 1500) -> float:
        """Milliseconds from the start to the first frame: the queries an app sends ahead of it are shorter than ``size``."""
        end = self.started + timeout
        while len(self.received) < size:
            if self.ended or time.perf_counter() > end:
                raise TimeoutError(f"no frame within {timeout} s\n{self.text}")
            self.read(0.05)
        return (time.perf_counter() - self.started) * 1e3

    def time_key(self, key: str, until: str | None = None, timeout: float = 2) -> float | None:
        """Milliseconds from a key to the first byte painted, or to the first painting of ``until``; None when it did not come.

        While something else paints, the first byte is not the answer to the key: name what the key brings, which is not on the screen
        before. It is looked for there, for a program may send no more than the cells that changed; the parsing of those is timed too.
        """
        self.quiet()
        self._parse()
        start, at = time.perf_counter(), len(self.received)
        self.press(key)
        while len(self.received) == at or (until is not None and until not in self.text):
            if self.ended or not self.read(max(0.0, start + timeout - time.perf_counter())):
                return None
        return (time.perf_counter() - start) * 1e3

    def exit_code(self, timeout: float = 30) -> int:
        """Read until the program has ended; TimeoutError when it does not."""
        end = time.perf_counter() + timeout
        while self.process.poll() is None:
            if time.perf_counter() > end:
                raise TimeoutError(f"still running after {timeout} s\n{self.text}")
            if self._master < 0 or self.ended:
                time.sleep(0.02)
            else:
                self.read(0.02)
        return int(self.process.returncode)

    @property
    def lines(self) -> list[str]:
        """The screen, a string a row."""
        return [line.rstrip() for line in self._parse().display]

    @property
    def text(self) -> str:
        """The screen as one text."""
        return "\n".join(self.lines)

    def row_style(self, row: int) -> list[tuple[str, str, bool, bool]]:
        """Foreground, background, reverse and bold of every cell of a row."""
        cells = self._parse().buffer[row]
        return [(cells[x].fg, cells[x].bg, cells[x].reverse, cells[x].bold) for x in range(self.size[0])]

    @property
    def frames(self) -> int:
        """How many synchronized updates were painted so far."""
        return self.received.count(FRAME)

    def cpu_seconds(self) -> float:
        """Processor time the program has used so far (Linux)."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def _answer(self) -> None:
        if not self._answered and SYNCHRONIZED in self.received:
            self._answered = 1
            os.write(self._master, b"\x1b[?2026;2$y")

    def _set_size(self) -> None:
        columns, rows = self.size
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def _parse(self) -> Any:
        if self._screen is None:
            import pyte

            self._screen = pyte.Screen(*self.size)
            self._stream = pyte.ByteStream(self._screen)
        data = bytes(self.received[self._parsed :])
        data = data[: UNFINISHED.search(data).start()]  # type: ignore[union-attr]
        self._parsed += len(data)
        self._stream.feed(UNKNOWN.sub(b"", data))
        return self._screen


def python(*arguments: str | Path) -> list[str]:
    """A command that runs this interpreter."""
    return [sys.executable, *map(str, arguments)]
