"""Each task on its default data: the metric of fp32 and of integers, what runs on integers, and the exported file.

usage: uv run --group bench python tests/bench/tasks.py [TASK …] [--write FILE]

Every row is `uv run qtui run MODEL --yes --qat never --export onnx` in a process of its own. The drop is that of the metric that
decides, in per cent of its range, or of fp32's value where it has none. "ONNX" is the same metric of `model.onnx` in ONNX Runtime on the
test split.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tables import check_place, put

from engine.tasks.metrics import known

MARKS = ("<!-- bench:tasks -->", "<!-- /bench:tasks -->")


@dataclass(frozen=True)
class Case:
    model: str
    options: tuple[str, ...] = ()


CASES: dict[str, Case] = {
    "classification": Case("simplecnn"),
    "multilabel": Case("tinycnn"),
    "regression, rows of numbers": Case("mlp"),
    "regression, images": Case("tinycnn", ("--task", "regression", "--data", "digit-ink")),
    "segmentation": Case("unet"),
    "detection": Case("tiny-detector"),
    "text-classification": Case("bert-mini"),
    "embeddings": Case("bert-mini", ("--task", "embeddings")),
    "seq2seq": Case("t5-mini"),
    "causal-lm": Case("gpt2-mini"),
    "fidelity": Case("simplecnn", ("--task", "fidelity", "--data", "digits")),
}


def measured(case: Case, folder: Path) -> dict[str, Any] | str:
    """The report of a run, or the line that it ended with; ``seconds`` is the whole process."""
    command = [sys.executable, "-m", "qtui", "run", case.model, *case.options, "--yes", "--qat", "never", "--export", "onnx"]
    since = time.perf_counter()
    done = subprocess.run([*command, "--out", str(folder), "--json"], capture_output=True, text=True, timeout=1800)
    try:
        return {**json.loads(done.stdout), "seconds": time.perf_counter() - since}
    except ValueError:
        return (done.stderr.strip().splitlines() or ["nothing was said"])[-1]


def row(name: str, case: Case, found: dict[str, Any] | str) -> str:
    if isinstance(found, str):
        return f"| {name} | {case.model} | {found} | | | | | | |"
    before, after = found["baseline"], found["ptq"]
    metric = known(before["metric"])
    layers = [layer for layer in found["layers"] if layer["kind"].startswith(("Conv", "Linear"))]
    integers = sum(layer["kernel"] is not None and "fp32" not in layer["kernel"] for layer in layers)
    export = next((entry for entry in found["exports"] if entry["format"] == "onnx"), {})
    written = "" if export.get("value") is None else metric.shown(export["value"])
    if metric.name == "perplexity":
        # That of the first windows alone, which are compared.
        written = f"{written}, {export['parity']['sqnr_db']:.1f} dB to native" if export.get("parity") else ""
    old, new = (math.inf if form["value"] is None else form["value"] for form in (before, after))
    drop = "" if metric.against_fp32 else f"{100 * _drop(metric, old, new):.2f} %"
    size = before["size_bytes"] / after["size_bytes"]
    shown = f"{metric.name} {metric.shown(old)}"
    return (
        f"| {name} | {case.model} | {shown} | {metric.shown(new)} | {drop} | {integers} of {len(layers)} | {size:.1f}× | "
        f"{written or export.get('reason') or export.get('error') or ''} | {found['seconds']:.0f} |"
    )


def _drop(metric: Any, old: float, new: float) -> float:
    low, high = metric.bounds
    return float(metric.drop(old, new) / (1 if metric.relative or not math.isfinite(high - low) else high - low))


def table(names: Sequence[str]) -> list[str]:
    lines = [
        "| task | model | fp32 | int8 | lost | on integers | smaller | ONNX | seconds |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for line in lines:
        print(line, flush=True)
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            lines.append(row(name, CASES[name], measured(CASES[name], Path(folder) / "run")))
        print(lines[-1], flush=True)
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="*", metavar="TASK", help=", ".join(CASES))
    parser.add_argument("--write", type=Path, help="put the table between the markers of this file")
    asked = parser.parse_args()
    names = asked.tasks or list(CASES)
    if wrong := [name for name in names if name not in CASES]:
        sys.exit(f"no task {wrong[0]!r}: give some of {', '.join(CASES)}")
    check_place(asked.write, MARKS)
    put("\n".join(table(names)), asked.write, MARKS)


if __name__ == "__main__":
    main()
