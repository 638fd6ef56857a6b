"""Measures the terminal app from outside, through a pseudo-terminal, against its budgets.

    python tests/bench/tui.py [--repeats 7] [--only NAME ...] [--write FILE] [--peer COMMAND] [-- COMMAND ...]

``--write`` puts the table of what keys cost (the scenario ``bytes``) into FILE. ``--peer`` is another terminal program, such as harlequin
in an environment of its own (it asks for another Textual), whose first frame, rest and keys are measured in the same run.

Prints a table and exits with 1 when a budget is missed. It asks for a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import atexit
import shlex
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import tables
from pty_terminal import PtyTerminal, python

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
SSH = {"SSH_CONNECTION": "192.0.2.1 50000 192.0.2.2 22", "SSH_TTY": "/dev/pts/0"}


@dataclass(frozen=True)
class Step:
    """Keys to press, and the text that says where one has come to."""

    name: str
    keys: tuple[str, ...]
    seen: str | Callable[[PtyTerminal], bool]
    timeout: float = 60


def asks(word: str) -> Callable[[PtyTerminal], bool]:
    """A question is open on the screen that shows this word."""
    return lambda terminal: "your choice" in terminal.lines[1] and word in terminal.text


def rests(terminal: PtyTerminal) -> bool:
    """PyTorch is imported and nothing runs."""
    return "starting" not in terminal.lines[0] and "working" not in terminal.lines[1]


def calibrates(terminal: PtyTerminal) -> bool:
    return "─ Calibrating" in terminal.lines[2]


# The way through the app, in order: ``Bench.reach`` plays it up to a name.
WAY = (
    Step("models", (), "simplecnn", 20),
    Step("graph", ("enter",), asks("╭─ Graph")),
    Step("strategy", ("n",), asks("╭─ Strategy")),
    Step("calibrating", ("n",), calibrates),
    Step("measured", (), asks("╭─ Layers"), 180),
    Step("training", ("t",), "─ step ", 180),
)
# A model that takes its time, so that there is something to count; it stands in the working folder of every start.
SLOW_FILE = """
from torch import nn


def make(widths=(64, 128, 128, 128)):
    layers, width = [], 3
    for wider in widths:
        layers += [nn.Conv2d(width, wider, 3, padding=1), nn.BatchNorm2d(wider), nn.ReLU()]
        width = wider
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10))


def lesser():
    return make((32, 64, 64))
"""


def own(factory: str) -> tuple[Step, ...]:
    """The way with a model of that file."""
    asked = (Step("asked", ("o",), "your own model ─"), Step("chosen", (f"slow.py:{factory}", "enter", "enter"), f"▌{factory}"))
    return (WAY[0], *asked, Step("graph", ("n",), asks("╭─ Graph"), 180), *WAY[2:])


HALT, HALTED = "S", "◌ Train"
LEAVE = (("q", "leave?"), ("y", ""))
# Keys whose answer can be told from the work's own painting: the key, and a word that only its answer paints.
WHILE_TRAINING = (("y", "loss ─ log"), ("y", "loss ─ lr"))
STAGES = (("1", "in the package"), ("5", "validation"))
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
    peer: Sequence[str] = ()

    def start(
        self, env: Mapping[str, str] | None = None, command: Sequence[str] | None = None, size: tuple[int, int] = (80, 24)
    ) -> PtyTerminal:
        folder = tempfile.mkdtemp(prefix="qtui-bench-")
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        (Path(folder) / "slow.py").write_text(SLOW_FILE)
        own = {"PYTHONPATH": str(ROOT), "QTUI_RUNS": f"{folder}/runs", "QTUI_CACHE": f"{tempfile.gettempdir()}/qtui-bench-cache"}
        return PtyTerminal(command or self.command, size, env={**own, **(env or {})}, cwd=folder)

    def reach(self, terminal: PtyTerminal, name: str, after: str | None = None, way: Sequence[Step] | None = None) -> None:
        """Play the way up to that step, from its beginning or from behind another step."""
        way = way or WAY
        names = [step.name for step in way]
        for step in way[names.index(after) + 1 if after else 0 : names.index(name) + 1]:
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
    yield Row("first frame, ratio", ours / empty, "×", 1.3)


def keys_at_rest(bench: Bench) -> Iterator[Row]:
    with bench.start() as terminal:
        bench.reach(terminal, "models")
        # PyTorch is imported behind the first frame: that is another measurement.
        terminal.wait_for(rests, 60)
        times = [terminal.time_key(key, until) for _ in range(bench.repeats * 4) for key, until in AT_REST]
        yield from percentiles(times, "key to repaint at rest", 50)
        yield silence(terminal, "on the first screen")
        bench.reach(terminal, "graph", "models")
        yield silence(terminal, "waiting at a question")
        bench.reach(terminal, "measured", "graph")
        yield silence(terminal, "waiting at the measured model")
        terminal.press("n")
        terminal.wait_for("╭─ Verdict", 60)
        terminal.wait_for(rests, 60)
        yield silence(terminal, "on a finished report")


def silence(terminal: PtyTerminal, where: str) -> Row:
    terminal.quiet(1, 10)
    return Row(f"bytes {where}", terminal.drain(5) / 5, "B/s", 0)


def keys_while_training(bench: Bench) -> Iterator[Row]:
    with bench.start() as terminal:
        bench.reach(terminal, "training", way=own("lesser"))
        terminal.drain(1)
        times = [terminal.time_key(key, until) for _ in range(bench.repeats * 3) for key, until in WHILE_TRAINING]
        yield from percentiles(times, "key to repaint while QAT trains", 50)
        times = [terminal.time_key(key, until) for _ in range(bench.repeats * 2) for key, until in STAGES]
        # The first of each builds its screen.
        yield from percentiles(times[2:], "to another stage while QAT trains", 150)
        frames, start, steps = terminal.frames, time.perf_counter(), step(terminal)
        terminal.drain(6)
        took = time.perf_counter() - start
        yield Row("frames while QAT trains", (terminal.frames - frames) / took, "/s", 12)
        batch = took / max(step(terminal) - steps, 1)
        start = time.perf_counter()
        terminal.press(HALT)
        terminal.wait_for("stopping", 30)
        yield Row("stop: said", (time.perf_counter() - start) * 1e3, "ms", 200)
        terminal.wait_for(HALTED, 60)
        yield Row("stop: saved", time.perf_counter() - start, "s", batch + 0.5, f"one batch ({batch:.2f} s) + 0.5 s")


def step(terminal: PtyTerminal) -> int:
    """How many steps the training has done, as its title says."""
    _, found, rest = terminal.text.partition("─ step ")
    return int(rest.split(" ")[0].replace(",", "")) if found else 0


def over_ssh(bench: Bench) -> Iterator[Row]:
    with bench.start(SSH) as terminal:
        bench.reach(terminal, "calibrating", way=own("make"))
        for what, ends in (
            ("calibrating", lambda t: not calibrates(t)),
            ("measuring", asks("╭─ Layers")),
        ):
            before, start = len(terminal.received), time.perf_counter()
            terminal.wait_for(ends, 300)
            yield rate(terminal, what, before, start)
        bench.reach(terminal, "training", "measured")
        before, start = len(terminal.received), time.perf_counter()
        terminal.drain(10)
        yield rate(terminal, "training", before, start)


def rate(terminal: PtyTerminal, what: str, before: int, start: float) -> Row:
    took = time.perf_counter() - start
    return Row(f"bytes over SSH, {what}", (len(terminal.received) - before) / took / 1e3, "KB/s", 15, f"{took:.1f} s")


def flood(bench: Bench) -> Iterator[Row]:
    """100,000 events a second through the real session and app."""
    told = Path(tempfile.mkdtemp(prefix="qtui-bench-")) / "told"
    atexit.register(shutil.rmtree, told.parent, ignore_errors=True)
    with bench.start({"QTUI_FLOOD": str(told)}, python(HERE / "flood_app.py")) as terminal:
        terminal.wait_for("simplecnn", 20)
        terminal.wait_for(rests, 20)
        terminal.press("enter")
        terminal.wait_for("─ step ", 20)
        terminal.drain(1)
        frames, start, before, used = terminal.frames, time.perf_counter(), len(terminal.received), terminal.cpu_seconds()
        terminal.drain(5)
        took = time.perf_counter() - start
        yield Row("flood: frames", (terminal.frames - frames) / took, "/s", 12)
        yield Row("flood: bytes", (len(terminal.received) - before) / took / 1e3, "KB/s", None, "a curve that jumps all over its chart")
        yield Row("flood: processor", 100 * (terminal.cpu_seconds() - used) / took, "%", None, "with the one who posts")
        times = [terminal.time_key(key, until) for _ in range(bench.repeats * 3) for key, until in WHILE_TRAINING]
        yield from percentiles(times, "flood: key to repaint", 100)
        terminal.press("q", "y")
        code = terminal.exit_code(20)
        count, seconds = told.read_text().split()
        yield Row("flood: events posted", int(count) / float(seconds), "/s", None, f"exit code {code}")


def leaving(bench: Bench) -> Iterator[Row]:
    with bench.start() as terminal:
        bench.reach(terminal, "training", way=own("lesser"))
        start = time.perf_counter()
        for key, seen in LEAVE:
            terminal.press(key)
            if seen:
                terminal.wait_for(seen)
        code = terminal.exit_code(30)
        yield Row("quit while QAT trains", time.perf_counter() - start, "s", 5, f"exit code {code}")


WALK = ("down",) * 5 + ("up",) * 5
SIDEWAYS = ("left", "right") * 4
KEY_BYTES = {(80, 24): 1000, (200, 60): 2000}
FRAME_BYTES = 8000
# What the cursor is walked on: the way there, what tells that one is there, the keys of the walk, and those that lead back.
SCREENS: tuple[tuple[str, tuple[str, ...], str | Callable[[PtyTerminal], bool], tuple[str, ...], tuple[str, ...]], ...] = (
    ("Models", (), rests, WALK, ()),
    ("Graph", ("enter",), asks("╭─ Graph"), WALK, ()),
    ("Strategy", ("n",), asks("╭─ Strategy"), WALK, ()),
    ("Sensitivity", ("e",), asks("╭─ Sensitivity ─"), WALK, ("esc",)),
    ("Budget", ("P",), lambda t: "plans ─ estimated" in t.text, SIDEWAYS, ("esc",)),
    ("Microscope", ("down", "i"), asks("become 0"), ("right", "right", "left", "left"), ("esc",)),
    ("Calibrate", ("n",), asks("╭─ Layers"), WALK, ()),
    ("Report", ("n",), lambda t: "╭─ Verdict" in t.text and rests(t), WALK, ()),
    ("Compare", ("c",), "against", WALK, ()),
)


def cost(terminal: PtyTerminal, key: str, gap: float = 0.4) -> int:
    """The bytes that a key brings."""
    before = len(terminal.received)
    terminal.press(key)
    terminal.quiet(gap, 4)
    return len(terminal.received) - before


def byte_costs(bench: Bench) -> Iterator[Row]:
    """What a key of the cursor costs on each screen, what a whole screen costs, and what comes while nothing is done."""
    for size, limit in KEY_BYTES.items():
        with bench.start(size=size) as terminal:
            for name, way, seen, walk, back in SCREENS:
                terminal.press(*way)
                terminal.wait_for(seen, 180)
                terminal.quiet(1.0, 10)
                sizes = [cost(terminal, key) for key in walk]
                # Another layer under the microscope is another screen.
                most = FRAME_BYTES if name == "Microscope" else limit
                yield Row(f"{name}, {size[0]}x{size[1]}", statistics.median(sizes), "B/key", most, f"{min(sizes)} to {max(sizes)}")
                terminal.press(*back)
                terminal.quiet(0.5, 5)
    with bench.start() as terminal:
        bench.reach(terminal, "graph")
        terminal.quiet(1, 10)
        for name, key in (("help", "?"), ("back", "esc"), ("palette", "ctrl+p"), ("back", "esc"), ("to Model", "1"), ("to Graph", "2")):
            yield Row(f"{name}, 80x24", cost(terminal, key, 0.8), "B", FRAME_BYTES)
    yield from at_first(bench, bench.command, "qtui")
    if bench.peer:
        yield from at_first(bench, bench.peer, "peer")
        with bench.start(command=bench.peer) as terminal:
            terminal.first_frame()
            terminal.quiet(2, 20)
            sizes = [cost(terminal, key) for key in WALK]
            yield Row("peer: cursor key, 80x24", statistics.median(sizes), "B/key", None, f"{min(sizes)} to {max(sizes)}")


def at_first(bench: Bench, command: Sequence[str], name: str) -> Iterator[Row]:
    """The first frame, and what comes afterwards while nobody does anything."""
    with bench.start(command=command) as terminal:
        took = terminal.first_frame()
        frame = len(terminal.received)
        yield Row(f"{name}: first frame", took, "ms", None, f"{frame:,} B")
        terminal.drain(1)
        before = len(terminal.received)
        if name == "qtui":
            terminal.wait_for(rests, 60)
        terminal.drain(4)
        until = len(terminal.received)
        yield Row(f"{name}: after the first second, until it rests", until - before, "B", 400 if name == "qtui" else None)
        yield Row(f"{name}: at rest", terminal.drain(5) / 5, "B/s", 0 if name == "qtui" else None)


SCENARIOS: dict[str, Callable[[Bench], Iterator[Row]]] = {
    "first-frame": first_frame,
    "rest": keys_at_rest,
    "training": keys_while_training,
    "ssh": over_ssh,
    "flood": flood,
    "leaving": leaving,
    "bytes": byte_costs,
}
MARKS = ("<!-- bench:tui-bytes -->", "<!-- /bench:tui-bytes -->")


def measured(bench: Bench, names: Sequence[str], place: Path | None = None) -> bool:
    """Run the scenarios and print their rows as they come; whether every budget was kept. What keys cost is put into ``place``."""
    kept = True
    table = ["| | measured | at most | |", "|---|---:|---:|---|"]
    print(f"{'':40}{'value':>10} {'unit':5}{'budget':>8}", flush=True)
    for name in names:
        try:
            for row in SCENARIOS[name](bench):
                limit = "" if row.limit is None else f"{row.limit:g}"
                print(f"{row.what:40}{row.value:>10.4g} {row.unit:5}{limit:>8}  {'MISSED ' if row.missed else ''}{row.note}", flush=True)
                kept &= not row.missed
                if name == "bytes":
                    table.append(f"| {row.what} | {row.value:,.0f} {row.unit} | {limit} | {row.note} |")
        except TimeoutError as error:
            kept = False
            print(f"{name}: {error}", flush=True)
    if "bytes" in names:
        tables.put("\n".join(table), place, MARKS)
    return kept


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--only", nargs="*", choices=list(SCENARIOS), default=list(SCENARIOS))
    parser.add_argument("--write", type=Path, help="put the table of bytes into this file")
    parser.add_argument("--peer", type=shlex.split, default=[], help="another terminal program to measure beside it")
    parser.add_argument("command", nargs="*", default=python("-m", "qtui"), help="another program in qtui's place")
    arguments = parser.parse_args()
    tables.check_place(arguments.write, MARKS)
    bench = Bench(arguments.command, arguments.repeats, arguments.peer)
    return 0 if measured(bench, arguments.only, arguments.write) else 1


if __name__ == "__main__":
    sys.exit(main())
