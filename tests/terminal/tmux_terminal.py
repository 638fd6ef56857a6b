"""A program in a tmux pane: type, look, resize, as over a real connection."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

from pty_terminal import environment

AVAILABLE = shutil.which("tmux") is not None


class Tmux:
    """A tmux server of its own, with no configuration, and one pane that stays when its program has ended."""

    def __init__(
        self,
        command: Sequence[str],
        size: tuple[int, int] = (80, 24),
        env: Mapping[str, str] | None = None,
        cwd: str | Path | None = None,
    ) -> None:
        # Not pytest's tmp_path: the path of a socket may have 107 characters.
        self._folder = tempfile.mkdtemp(prefix="qtui-tmux-")
        self._environment = environment(env) | {"TMUX_TMPDIR": self._folder}
        columns, rows = map(str, size)
        keep = ["set-option", "-g", "remain-on-exit", "on", ";", "set-option", "-g", "status", "off", ";"]
        self.run(
            "-f", "/dev/null", *keep, "new-session", "-d", "-s", "main", "-x", columns, "-y", rows,
            "-c", str(cwd or Path.cwd()), "exec env -u TMUX_TMPDIR " + shlex.join(command),
        )  # fmt: skip

    def __enter__(self) -> Tmux:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.run("kill-server", check=False)
        shutil.rmtree(self._folder, ignore_errors=True)

    def run(self, *arguments: str, check: bool = True) -> str:
        """One tmux command: what it prints."""
        command = ["tmux", "-L", "test", *arguments]
        done = subprocess.run(command, env=self._environment, capture_output=True, text=True, check=False, timeout=20)
        if check and done.returncode:
            raise RuntimeError(f"{shlex.join(command)}: {done.stderr.strip()}")
        return done.stdout

    def keys(self, *keys: str) -> None:
        """Press keys by tmux's names: ``Enter``, ``Down``, ``C-p``, ``x``."""
        self.run("send-keys", "-t", "main", *keys)

    def type(self, text: str) -> None:
        """Type this text as it is."""
        self.run("send-keys", "-t", "main", "-l", text)

    def send_bytes(self, data: bytes) -> None:
        """Send raw bytes to the program."""
        self.run("send-keys", "-t", "main", "-H", *(f"{byte:02x}" for byte in data))

    def screen(self, styles: bool = False) -> str:
        """What the pane shows; with its colour sequences where ``styles``."""
        return self.run("capture-pane", "-p", "-t", "main", *(["-e"] if styles else [])).rstrip("\n")

    def wait_for(self, text: str, timeout: float = 40) -> str:
        """Poll until the text is on the screen, and return that screen; TimeoutError shows the last."""
        end = time.monotonic() + timeout
        while text not in (seen := self.screen()):
            if time.monotonic() > end or "\nPane is dead" in seen:
                raise TimeoutError(f"not seen within {timeout} s: {text}\n{seen}")
            time.sleep(0.05)
        return seen

    def resize(self, columns: int, rows: int) -> None:
        """Change the size of the window."""
        self.run("resize-window", "-t", "main", "-x", str(columns), "-y", str(rows))

    @property
    def pid(self) -> int:
        """The program's process."""
        return int(self._ask("#{pane_pid}"))

    def exit_code(self, timeout: float = 30) -> int:
        """Wait for the program to end; a signal's number negative."""
        end = time.monotonic() + timeout
        while self._ask("#{pane_dead}") != "1":
            if time.monotonic() > end:
                raise TimeoutError(f"still running after {timeout} s\n{self.screen()}")
            time.sleep(0.05)
        status, number = self._ask("#{pane_dead_status} #{pane_dead_signal}").split(" ")
        return int(status) if status else -int(number or 0)

    def _ask(self, what: str) -> str:
        return self.run("display-message", "-p", "-t", "main", what).rstrip("\n")
