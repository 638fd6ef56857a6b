"""Measures the terminal app from outside, through a pseudo-terminal, against its budgets.

    python tests/bench/tui.py [--repeats 7] [--only NAME ...] [-- COMMAND ...]

Prints a table and exits with 1 when a budget is missed. It asks for a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import atexit
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pty_terminal import PtyTerminal, python

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
SSH = {"SSH_CONNECTION": "192.0.2.1 50000 192.0.2.2 22", "SSH_TTY": "/dev/pts/0"}


@dataclass(frozen=True)
class Step:
    """Keys to press, and the text that says where one has come to."""

    name: str
    keys: tuple[str, ...]
    seen: str
    timeout: float = 60


# The way through the app, in order: ``Bench.reach`` plays it up to a name.
WAY = (
    Step("models", (), "simplecnn", 20),
    Step("graph", ("enter",), "Graph ─"),
    Step("strategy", ("n",), "Strategy ─"),
    Step("calibrating", ("n",), "Calibrating"),
    Step("measured", (), "t train", 180),
    Step("training", ("t",), "QAT ─"),
)
STOP = Step("stopped", ("s",), "stopp", 30)
STOPPED = Step("stopped", (), "n report", 60)
LEAVE = ("q", "y")
# Keys whose answer can be told from the work's own painting: the key, and a word that only its answer paints.
WHILE_TRAINING = (("1", "simplecnn"), ("5", "QAT"))
AT_REST = (("down", None), ("up", None))


@dataclass(frozen=True)
class Row:
    """A line of the table; ``limit`` is what ``value`` may be at most."""

    what: str
    value: float
    unit: str
    limit: float | None = None
    note: str = ""

    @property
    def missed(self) -> bool:
        return self.limit is not None and self.value > self.limit


@dataclass(frozen=True)
class Bench:
    """How the app is started, and how often."""

    command: Sequence[str]
    repeats: int = 7

    def start(self, env: Mapping[str, str] | None = None, command: Sequence[str] | None = None) -> PtyTerminal:
        folder = tempfile.mkdtemp(prefix="qtui-bench-")
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        return PtyTerminal(command or self.command, env={"PYTHONPATH": str(ROOT), **(env or {})}, cwd=folder)

    def reach(self, terminal: PtyTerminal, name: str, after: str | None = None) -> None:
        """Play the way up to that step, from its beginning or from behind another step."""
        names = [step.name for step in WAY]
        for step in WAY[names.index(after) + 1 if after else 0 : names.index(name) + 1]:
            terminal.press(*step.keys)
            terminal.wait_for(step.seen, step.timeout)


def percentiles(times: Sequence[float | None], what: str, limit: float) -> Iterator[Row]:
    heard = sorted(t for t in times if t is not None)
    silent = len(times) - len(heard)
    note = f"{len(heard)} keys" + (f", {silent} without an answer" if silent else "")
    if not heard:
        raise TimeoutError(f"none of {len(times)} keys was answered")
    yield Row(f"{what}, p50", statistics.median(heard), "ms", None, note)
    yield Row(f"{what}, p95", heard[min(len(heard) - 1, int(len(heard) * 0.95))], "ms", limit)


def first_frame(bench: Bench) -> Iterator[Row]:
    """qtui and the empty app in turn: a machine that slows down slows both."""
    times: dict[str, list[float]] = {"empty": [], "qtui": []}
    commands = {"empty": python(HERE / "empty_app.py"), "qtui": bench.command}
    for turn in range(bench.repeats + 1):
        for name, command in commands.items():
            with bench.start(command=command) as terminal:
                took = terminal.first_frame()
            if turn:  # the first one reads the files from the disk
                times[name].append(took)
    empty, ours = (statistics.median(times[name]) for name in ("empty", "qtui"))
    yield Row("first frame, empty Textual app", empty, "ms", None, f"median of {bench.repeats}")
    yield Row("first frame, qtui", ours, "ms", 700, f"{min(times['qtui']):.0f} to {max(times['qtui']):.0f}")
    yield Row("first frame, ratio", ours / empty, "×", 1.5)


def keys_at_rest(bench: Bench) -> Iterator[Row]:
    with bench.start() as terminal:
        bench.reach(terminal, "models")
        # PyTorch is imported behind the first frame: that is another measurement.
        terminal.drain(8)
        times = [terminal.time_key(key, until) for _ in range(bench.repeats * 4) for key, until in AT_REST]
        terminal.drain(0.5)
        yield from percentiles(times, "key to repaint at rest", 50)
        yield Row("bytes at rest", terminal.drain(3) / 3, "B/s", 200)


def keys_while_training(bench: Bench) -> Iterator[Row]:
    with bench.start() as terminal:
        bench.reach(terminal, "training")
        terminal.drain(1)
        times = [terminal.time_key(key, until) for _ in range(bench.repeats * 3) for key, until in WHILE_TRAINING]
        yield from percentiles(times, "key to repaint while QAT trains", 50)
        frames, start = terminal.frames, time.perf_counter()
        terminal.drain(4)
        yield Row("frames while QAT trains", (terminal.frames - frames) / (time.perf_counter() - start), "/s", 12)
        start = time.perf_counter()
        terminal.press(*STOP.keys)
        terminal.wait_for(STOP.seen, STOP.timeout)
        yield Row("stop: said", (time.perf_counter() - start) * 1e3, "ms", 200)
        terminal.wait_for(STOPPED.seen, STOPPED.timeout)
        yield Row("stop: done", time.perf_counter() - start, "s", None, "one batch + 0.5 s, and the measuring of what is kept")


def over_ssh(bench: Bench) -> Iterator[Row]:
    with bench.start(SSH) as terminal:
        bench.reach(terminal, "strategy")
        terminal.quiet(0.3, 2)
        for name, after in (("measured", "strategy"), ("training", "measured")):
            before, start = len(terminal.received), time.perf_counter()
            bench.reach(terminal, name, after)
            if name == "training":
                terminal.drain(5)
            took = time.perf_counter() - start
            what = {"measured": "calibrating and measuring", "training": "training"}[name]
            yield Row(f"bytes over SSH, {what}", (len(terminal.received) - before) / took / 1e3, "KB/s", 15, f"{took:.1f} s")


def leaving(bench: Bench) -> Iterator[Row]:
    with bench.start() as terminal:
        bench.reach(terminal, "training")
        start = time.perf_counter()
        for key in LEAVE:
            terminal.press(key)
            terminal.drain(0.3)
        code = terminal.exit_code(30)
        yield Row("quit while QAT trains", time.perf_counter() - start, "s", 5, f"exit code {code}")


SCENARIOS: dict[str, Callable[[Bench], Iterator[Row]]] = {
    "first-frame": first_frame,
    "rest": keys_at_rest,
    "training": keys_while_training,
    "ssh": over_ssh,
    "leaving": leaving,
}


def measured(bench: Bench, names: Sequence[str]) -> bool:
    """Run the scenarios and print their rows as they come; whether every budget was kept."""
    kept = True
    print(f"{'':36}{'value':>10} {'unit':5}{'budget':>8}", flush=True)
    for name in names:
        try:
            for row in SCENARIOS[name](bench):
                limit = "" if row.limit is None else f"{row.limit:g}"
                print(f"{row.what:36}{row.value:>10.4g} {row.unit:5}{limit:>8}  {'MISSED ' if row.missed else ''}{row.note}", flush=True)
                kept &= not row.missed
        except TimeoutError as error:
            kept = False
            print(f"{name}: {error}", flush=True)
    return kept


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--only", nargs="*", choices=list(SCENARIOS), default=list(SCENARIOS))
    parser.add_argument("command", nargs="*", default=python("-m", "qtui"), help="another program in qtui's place")
    arguments = parser.parse_args()
    return 0 if measured(Bench(arguments.command, arguments.repeats), arguments.only) else 1


if __name__ == "__main__":
    sys.exit(main())
