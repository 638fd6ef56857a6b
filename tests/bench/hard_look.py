"""An hour of random cases that the ordinary tests do not have time for, kind by kind; each case is a seed.

    uv run --group bench python tests/bench/hard_look.py --minutes 60
    uv run --group bench python tests/bench/hard_look.py --case networks:81

It goes on with the next seed of each kind where it was stopped, as ``--state`` says. Each case runs in a process of its kind, which
may crash or hang. At the end, and at Ctrl-C, it prints a table of kinds with their outcomes and every find with its seed.
Exit code 1 where there is a find.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import select
import signal
import subprocess
import sys
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

HERE = Path(__file__).parent
TESTS = ("engine", "engine/export", "qtui/app")


@dataclass(frozen=True)
class Kind:
    """``share`` is its part of the time; a case that takes more than ``seconds`` hangs."""

    about: str
    place: str
    share: float
    seconds: float


KINDS: dict[str, Kind] = {
    "networks": Kind("random graphs: native, simulation, ONNX Runtime", "hard_look_networks:look", 0.4, 300),
    "decoders": Kind("transformers' families, tiny", "hard_look_decoders:look", 0.25, 600),
    "files": Kind("damaged files, by the command line", "hard_look_files:look", 0.15, 300),
    "app": Kind("damaged runs, in the app", "hard_look_files:look_in_the_app", 0.1, 300),
    "kills": Kind("killed at random moments, then resumed", "hard_look_kills:look", 0.1, 1800),
}
# Seconds that a process may take before its first case.
_BEGINNING = 900.0
# What is counted beside what is fine: not what this looks for.
EXPECTED = ("fine", "refused", "export refused", "export alarm", "not built")


@dataclass(frozen=True)
class Case:
    kind: str
    seed: int
    outcome: str
    text: str
    seconds: float


def work(kind: str, first: int) -> int:
    """Cases from a seed on: for each line that is read one, and a line of JSON."""
    for folder in (HERE, *(HERE.parent / name for name in TESTS)):
        sys.path.insert(0, str(folder))
    sys.path.insert(0, str(HERE.parents[1]))
    warnings.simplefilter("ignore")
    import torch

    torch.set_num_threads(1)
    module, _, name = KINDS[kind].place.partition(":")
    found = importlib.import_module(module)
    look = getattr(found, name)
    # What a case prints is not what this process answers.
    answers, sys.stdout = os.fdopen(os.dup(1), "w"), sys.stderr
    os.dup2(2, 1)
    # What every case begins with is no part of a case's time.
    getattr(found, "prepare", lambda: None)()
    seed = first
    for _ in sys.stdin:
        start = time.monotonic()
        print(f"{kind}:{seed}", file=answers, flush=True)
        try:
            outcome, text = look(seed)
        except Exception as error:
            outcome, text = "exception", f"{type(error).__name__}: {error} {traceback.format_exc()[-1200:]}"
        case = Case(kind, seed, outcome, text[:4000], round(time.monotonic() - start, 2))
        print(json.dumps(asdict(case)), file=answers, flush=True)
        seed += 1
    return 0


class Worker:
    """A process that looks at the cases of one kind."""

    def __init__(self, kind: str, first: int) -> None:
        self.kind, self.seed, self._rest = kind, first, b""
        command = [sys.executable, str(Path(__file__).resolve()), "--worker", kind, str(first)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
        # In a session of its own: children of a case end with it.
        self._process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, stdin=subprocess.PIPE, env=environment, start_new_session=True
        )

    def next(self, seconds: float) -> Case:
        """The next case; one that hung or crashed ends the process."""
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.write(b"\n")
            self._process.stdin.flush()
        start, left = time.monotonic(), max(seconds, _BEGINNING)
        while True:
            line = self._line(start + left - time.monotonic())
            if line is None:
                took = time.monotonic() - start
                code = self._process.poll()
                self.close()
                outcome = "hangs" if code is None else "crashes"
                return Case(self.kind, self.seed, outcome, f"exit code {code}" if code is not None else "", round(took, 2))
            if line.startswith(b"{"):
                case = Case(**json.loads(line))
                self.seed = case.seed + 1
                return case
            start, left = time.monotonic(), seconds

    def _line(self, seconds: float) -> bytes | None:
        assert self._process.stdout is not None
        place, end = self._process.stdout.fileno(), time.monotonic() + seconds
        while b"\n" not in self._rest:
            left = end - time.monotonic()
            if left <= 0 or not select.select([place], [], [], left)[0]:
                return None
            if not (more := os.read(place, 65536)):
                self._process.wait()
                return None
            self._rest += more
        line, _, self._rest = self._rest.partition(b"\n")
        return line

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def close(self) -> None:
        if self.alive:
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


def look(kinds: Sequence[str], minutes: float, seed: int, state: Path) -> list[Case]:
    """New cases until the time is over, each kept in ``state`` as it comes."""
    known = read(state)
    following = {kind: max([seed, *(case.seed + 1 for case in known if case.kind == kind)]) for kind in kinds}
    spent = dict.fromkeys(kinds, 0.0)
    print("first seeds: " + ", ".join(f"{kind} {following[kind]}" for kind in kinds), flush=True)
    found: list[Case] = []
    workers: dict[str, Worker] = {}
    end = time.monotonic() + 60 * minutes
    try:
        while time.monotonic() < end:
            kind = min(kinds, key=lambda k: spent[k] / KINDS[k].share)
            start = time.monotonic()
            if kind not in workers or not workers[kind].alive:
                workers[kind] = Worker(kind, following[kind])
            case = workers[kind].next(KINDS[kind].seconds)
            spent[kind] += time.monotonic() - start
            following[kind] = case.seed + 1
            found.append(case)
            with state.open("a") as file:
                file.write(json.dumps(asdict(case)) + "\n")
            if case.outcome not in EXPECTED:
                print(f"{case.kind}:{case.seed} {case.outcome} ({case.seconds:.1f} s): {case.text[:1500]}", flush=True)
    finally:
        for worker in workers.values():
            worker.close()
    return found


def read(state: Path) -> list[Case]:
    if not state.exists():
        return []
    return [Case(**json.loads(line)) for line in state.read_text().splitlines() if line.startswith("{")]


def table(cases: Sequence[Case]) -> str:
    lines = ["| kind | cases | fine | finds | outcomes | seconds |", "|---|---:|---:|---:|---|---:|"]
    for kind, about in KINDS.items():
        own = [case for case in cases if case.kind == kind]
        counts = Counter(case.outcome for case in own)
        finds = sum(count for outcome, count in counts.items() if outcome not in EXPECTED)
        rest = ", ".join(f"{outcome} {count}" for outcome, count in counts.most_common() if outcome != "fine")
        seconds = sum(case.seconds for case in own)
        lines.append(f"| {kind}: {about.about} | {len(own)} | {counts['fine']} | {finds} | {rest} | {seconds:.0f} |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0, help="the first seed of each kind")
    parser.add_argument("--kinds", default=",".join(KINDS), help="comma-separated")
    parser.add_argument("--state", type=Path, default=Path("hard_look.jsonl"), help="where cases are kept; a later call goes on")
    parser.add_argument("--case", metavar="KIND:SEED", help="one case alone, and what it says")
    parser.add_argument("--table", action="store_true", help="only print the table of what is kept")
    parser.add_argument("--worker", nargs=2, metavar=("KIND", "SEED"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        return work(args.worker[0], int(args.worker[1]))
    if args.case:
        kind, _, seed = args.case.partition(":")
        worker = Worker(kind, int(seed))
        case = worker.next(KINDS[kind].seconds)
        worker.close()
        print(f"{case.kind}:{case.seed} {case.outcome} ({case.seconds:.1f} s): {case.text}")
        return int(case.outcome not in EXPECTED)
    kinds = args.kinds.split(",")
    if unknown := [kind for kind in kinds if kind not in KINDS]:
        parser.error(f"there is no kind {unknown[0]}: {', '.join(KINDS)}")
    new: list[Case] = []
    if not args.table:
        try:
            new = look(kinds, args.minutes, args.seed, args.state)
        except KeyboardInterrupt:
            print("stopped: the same command goes on", file=sys.stderr)
    print(table(read(args.state)))
    return int(any(case.outcome not in EXPECTED for case in new))


if __name__ == "__main__":
    sys.exit(main())
