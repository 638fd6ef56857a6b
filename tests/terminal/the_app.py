"""qtui itself with its real engine, in a terminal: how to start it, where it is, and what its runs have left."""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pty_terminal import PtyTerminal, environment, python

ROOT = Path(__file__).parents[2]
LONG = 120.0
Seen = Callable[[PtyTerminal], bool]


@dataclass
class Place:
    """A working folder with its runs; ``cache`` may be shared, so that kernels are probed once."""

    folder: Path
    cache: Path
    env: dict[str, str] = field(default_factory=dict)

    @property
    def runs(self) -> Path:
        return self.folder / "runs"

    def environment(self, **more: str) -> dict[str, str]:
        own = {"QTUI_RUNS": str(self.runs), "QTUI_CACHE": str(self.cache), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        return own | self.env | more

    @contextmanager
    def app(self, size: tuple[int, int] = (80, 24), **env: str) -> Iterator[PtyTerminal]:
        """The app at its first screen."""
        with PtyTerminal(python("-m", "qtui"), size, self.environment(**env), self.folder) as terminal:
            terminal.wait_for("simplecnn", LONG)
            yield terminal

    def headless(self, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
        command = [*python("-m", "qtui"), *arguments]
        given = {"stdin": subprocess.DEVNULL, "capture_output": True, "text": True, "timeout": LONG, "check": False, **options}
        return subprocess.run(command, env=environment(self.environment()), cwd=self.folder, **given)

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        streams: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        return subprocess.Popen([*python("-m", "qtui"), *arguments], env=environment(self.environment()), cwd=self.folder, **streams)

    @property
    def run(self) -> Path:
        """The only run."""
        (found,) = self.runs.iterdir()
        return found

    @property
    def state(self) -> str:
        return str(json.loads((self.run / "state.json").read_text(encoding="utf-8"))["state"])

    def events(self, kind: str) -> int:
        """How many events of a kind the runs have told so far."""
        return sum(
            line.startswith(f'{{"event": "{kind}"') for file in self.runs.glob("*/events.jsonl") for line in file.read_text().splitlines()
        )


def until(true: Callable[[], object], timeout: float = LONG) -> None:
    end = time.monotonic() + timeout
    while not true():
        assert time.monotonic() < end, f"not so within {timeout} s"
        time.sleep(0.05)


def asks(word: str) -> Seen:
    """A question is open on the screen that shows this word."""
    return lambda terminal: "your choice" in terminal.lines[1] and word in terminal.text


def steps(count: int) -> Seen:
    """Training has come to that step at least, as its title says."""

    def seen(terminal: PtyTerminal) -> bool:
        _, found, rest = terminal.text.partition("─ step ")
        return bool(found) and int(rest.split(" ")[0].replace(",", "")) >= count

    return seen


FOLD, PLAN, MEASURED = asks("╭─ Graph"), asks("╭─ Strategy"), asks("╭─ Layers")


def reach_measured(terminal: PtyTerminal) -> None:
    """From the first screen to the question whether to train."""
    for key, seen in (("enter", FOLD), ("n", PLAN), ("n", MEASURED)):
        terminal.press(key)
        terminal.wait_for(seen, LONG)


def reported(lines: Sequence[str]) -> bool:
    """The report is shown, and the second line tells of no more work: neither words nor a part of it."""
    return any("╭─ Verdict ─ " in line for line in lines) and not re.search(r"(…|\d %|choice)\s*$", lines[1])


def training(terminal: PtyTerminal, key: str) -> None:
    """Press the key that goes on training, and wait for steps."""
    terminal.press(key)
    terminal.wait_for(steps(1), LONG)


def ended(terminal: PtyTerminal, timeout: float = 30) -> None:
    """It ends with code 0, and no traceback was painted."""
    assert terminal.exit_code(timeout) == 0
    assert b"Traceback" not in terminal.received
