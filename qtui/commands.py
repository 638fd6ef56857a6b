"""The commands that work: run, train, resume. The engine is imported when one of them starts."""

from __future__ import annotations

import errno
import json
import shlex
import sys
from argparse import Namespace
from collections.abc import Callable, Generator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO, TypeVar

from engine.errors import Cancelled, UsageError
from engine.events.cancellation import StopToken
from engine.events.event import Event
from engine.machine.ranks.place import place
from engine.plain_text import plain
from qtui.ownership import owned

if TYPE_CHECKING:
    from engine.report.report import Report

T = TypeVar("T")

MET, NOT_MET = 0, 3
JUDGING = ("--against", "--data", "--limit", "--json", "--yes")
"""What ``qtui run`` takes beside a model that is judged, not quantized."""


def run(args: Namespace) -> int:
    """``qtui run``: quantize a model and print what was found; with ``--against`` judge one that is quantized."""
    if args.against is not None:
        return _judge(args)
    from qtui.request import recipe_of

    recipe = recipe_of(args)
    from engine.runs import pipeline

    out = Path(args.out) if args.out else None
    if args.dry_run:
        plan = _drive(lambda stop: pipeline.dry_run(recipe, out, stop), args)
        if args.json:
            rows = [{"layer": row.path, "becomes": str(row.actual), "on": row.kernel, "why": row.why} for row in plan.layers]
            print(json.dumps({"preset": recipe.preset, "layers": rows}), flush=True)
        return MET
    return _report(_drive(lambda stop: owned(_own(out), pipeline.run(recipe, out, stop)), args), args)


def _judge(args: Namespace) -> int:
    """Compare a model with its original. Raises UsageError for options that ask something of quantization."""
    from qtui.against import compare

    given = [word.partition("=")[0] for word in args.argv if word.startswith("--")]
    if (other := next((name for name in given if name not in JUDGING), None)) is not None:
        raise UsageError(f"{other} is of a model that is quantized; --against judges one that is: leave one of the two out")
    if args.limit is not None and args.limit < 1:
        raise UsageError(f"--limit {args.limit} is not 1 or more")
    args.original, args.other, args.data = args.against, args.model, args.data or "python-docs"
    return compare(args)


def _own(directory: Path | None) -> Path | None:
    """The folder where this process has it: of several ranks the first."""
    return directory if place().is_first else None


def resume(args: Namespace) -> int:
    """``qtui resume``: go on with a run that was stopped."""
    from engine.runs.rundir import find_run

    directory = find_run(args.run) if place().is_first else Path(args.run)
    from engine.runs import pipeline

    return _report(_drive(lambda stop: owned(_own(directory), pipeline.resume(directory, stop)), args), args)


def export(args: Namespace) -> int:
    """``qtui export``: write the model of a finished run for other runtimes. A file that is not what was measured is no success."""
    from engine.export.registry import find
    from engine.report.mismatch import differing
    from engine.runs.rundir import find_run

    # Which of them the run's own kind of model has is known when its report has been read.
    for name in args.to:
        find(name)
    directory = find_run(args.run)
    from engine.runs import reexport as exporting

    report = _drive(lambda stop: owned(directory, exporting.export(directory, args.to, stop, args.force)), args)
    if args.json:
        print(report.to_json(), flush=True)
    return NOT_MET if differing(report.data["exports"]) & {*args.to} else MET


def train(args: Namespace) -> int:
    """``qtui train``: train a baseline and write its weights."""
    from engine.runs import pipeline

    out = Path(args.out) if args.out else None
    asked: dict[str, Any] = {"folder": None, "out": out, "epochs": args.epochs, "seed": args.seed, "device": args.device, "stem": args.stem}
    asked["task"] = args.task
    command = shlex.join(["uv", "run", "qtui", *args.argv])
    weights = _drive(lambda stop: pipeline.train(args.model, args.data, **asked, command=command, stop=stop), args)
    print(f"\nweights written to {plain(weights)}", flush=True)
    return MET


def _report(report: Report, args: Namespace) -> int:
    if args.json and place().is_first:
        print(report.to_json(), flush=True)
    # A launcher takes every code but 0 for a crash, and starts the ranks again.
    return MET if report.met or place().count > 1 else NOT_MET


def _drive(start: Callable[[StopToken], Generator[Event, Any, T]], args: Namespace) -> T:
    """Show a generator's events to its end, under the signal handlers."""
    from qtui.bars import Bars
    from qtui.console import Console, drive
    from qtui.interrupts import Interrupts
    from qtui.prompts import Prompts
    from qtui.screen import Screen

    as_json = getattr(args, "json", False)
    stop = StopToken()
    # A reader that has gone (| head) stops the run, so that its state is saved.
    # Rank 0 has the console; the others say nothing.
    speaks = place().is_first
    screen = Screen(sys.stderr if as_json else sys.stdout, on_lost=stop.set)
    bars = Bars(_terminal(sys.stderr, screen.stream))
    with Interrupts(stop, speaks) as interrupts:
        prompts = Prompts(screen, sys.stdin, getattr(args, "yes", False), stop, interrupts.asking)
        try:
            return drive(start(stop), Console(screen, bars, prompts) if speaks else _silent)
        except Cancelled:
            if screen.lost and screen.lost.errno not in (errno.EPIPE, errno.EIO):
                raise screen.lost from None
            raise
        finally:
            bars.close()


def _silent(event: Event) -> None:
    """What a rank shows that is not the first: questions are answered by rank 0."""


def _terminal(*streams: TextIO) -> TextIO | None:
    return next((stream for stream in streams if stream.isatty()), None)
