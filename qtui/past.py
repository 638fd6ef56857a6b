"""``qtui runs`` and ``qtui show``: what was done."""

from __future__ import annotations

from argparse import Namespace
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from engine.errors import UsageError
from qtui import text
from qtui.listing import print_json, print_table

if TYPE_CHECKING:
    from engine.runs.rundir import RunSummary


def runs(args: Namespace) -> int:
    """The runs of a folder, newest first."""
    from engine.runs.rundir import list_runs, runs_root

    root = Path(args.folder) if args.folder else runs_root()
    if args.folder and not root.is_dir():
        raise UsageError(f"folder {root} does not exist: give the folder that holds the runs")
    found = list_runs(root)
    if args.json:
        return print_json([{**asdict(run), "directory": str(run.directory)} for run in found])
    if not found:
        print(f"no runs in {text.plain(root)}; qtui run simplecnn makes one")
        return 0
    columns = ("run", "state", "chosen", "fp32", "value", "model", "verdict")
    return print_table(columns, [_row(run) for run in found])


def show(args: Namespace) -> int:
    """The report of one run."""
    from engine.report.report import Report
    from engine.runs.rundir import find_run

    directory = find_run(args.run)
    report = Report.load(directory)
    told = report.to_json() if args.json else text.plain(report.shown(directory).rstrip("\n"))
    print(told, flush=True)
    return 0


def _row(run: RunSummary) -> tuple[str, ...]:
    figures = (run.chosen or "", _value(run, run.baseline), _value(run, run.value, named=True))
    started = run.started[:16].replace("T", " ")
    return (run.directory.name, run.state, *figures, f"{run.model} on {run.data}, {started}", run.text.partition(". ")[0])


def _value(run: RunSummary, value: float | None, named: bool = False) -> str:
    if value is None:
        return ""
    metric = text.metric_of_run(run)
    return f"{text.named(metric) if named and metric is not None else ''}{text.summary(value, metric)}"
