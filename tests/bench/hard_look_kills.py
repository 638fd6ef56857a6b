"""Runs that are killed (SIGKILL) at random moments and resumed until they end: the figures of a run that nothing disturbed."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from functools import cache
from pathlib import Path
from typing import Any

import driving

from engine.runs.rundir import list_runs

# torch's own time to start is no part of what is to be disturbed: a child says when it begins.
_CHILD = """
import sys
import driving, torch
from engine.runs.rundir import list_runs
from qtui.cli import dispatch
torch.set_num_threads(1)
print("begun", flush=True)
with driving.untimed():
    sys.exit(dispatch(sys.argv[1:]))
"""
_PATIENCE = 900.0
_MOST = 12


def _run(command: list[str], place: Path, seconds: float | None) -> tuple[int | None, str, float]:
    """The exit code, None where it was killed after ``seconds`` from its beginning; what it said; and how long it took."""
    tests = str(Path(driving.__file__).parent)
    environment = {**os.environ, "PYTHONPATH": f"{driving.REPOSITORY}{os.pathsep}{tests}", "OMP_NUM_THREADS": "1"}
    with (place / "said.txt").open("w") as said:
        child = subprocess.Popen(
            [sys.executable, "-c", _CHILD, *command], stdout=subprocess.PIPE, stderr=said, env=environment, text=True, cwd=place
        )
        assert child.stdout is not None
        child.stdout.readline()
        start = time.monotonic()
        try:
            child.communicate(timeout=_PATIENCE if seconds is None else seconds)
        except subprocess.TimeoutExpired:
            child.send_signal(signal.SIGKILL)
            child.communicate()
            return None, (place / "said.txt").read_text(), time.monotonic() - start
    return child.returncode, (place / "said.txt").read_text(), time.monotonic() - start


def _asked(place: Path, out: Path) -> list[str]:
    (place / "tiny.py").write_text(driving.TINY)
    recipe = {
        "model": f"{place / 'tiny.py'}:make", "data": {"name": "digits", "calibration": 64, "limit": 64}, "preset": "w4a4",
        "qat": {"mode": "always", "epochs": 2}, "threshold": "drop:0.001", "export": ["onnx"],
    }  # fmt: skip
    (place / "recipe.yaml").write_text(json.dumps(recipe))
    return ["run", "--recipe", str(place / "recipe.yaml"), "--out", str(out), "--yes"]


@cache
def undisturbed() -> tuple[dict[str, Any], float]:
    """Its figures and the seconds that it took."""
    # The recipe is part of the model's file: a path of the same length makes a file of the same size.
    with tempfile.TemporaryDirectory() as held:
        place = Path(held)
        code, said, seconds = _run(_asked(place, place / "run"), place, None)
        assert code in (0, 3), said
        return driving.figures(json.loads((place / "run" / "report.json").read_text())), seconds


def prepare() -> None:
    undisturbed()


def look(seed: int) -> tuple[str, str]:
    """The outcome of a case, ``fine`` or what kind of find it is, and what is to be said of it."""
    wanted, length = undisturbed()
    r = random.Random(seed)
    with tempfile.TemporaryDirectory() as held:
        place, out = Path(held), Path(held) / "run"
        command, told = _asked(place, out), []
        for kill in range(_MOST):
            seconds = r.uniform(0.02, 1.0) * length if kill < r.choice([1, 2, 3, 5]) else None
            code, said, took = _run(command, place, seconds)
            told.append(f"{took:.1f} s: {'killed' if code is None else code}")
            if "Traceback" in said or "the traceback is in" in said:
                return "traceback", f"{told} {said[-600:]}"
            if code is not None:
                break
            if out.exists() and [run.state for run in list_runs(place)] not in (["failed"], ["finished"], []):
                return "state", f"{told}: {[(run.state, run.text) for run in list_runs(place)]}"
            finished = (out / "report.json").exists()
            if finished:
                break
            # Before the folder holds its recipe nothing is there to go on with: the same command begins anew.
            command = ["resume", str(out)] if (out / "recipe.yaml").exists() else _asked(place, out)
        if code not in (0, 3, None):
            return "not resumed", f"{told} {said[-400:]}"
        try:
            found = driving.figures(json.loads((out / "report.json").read_text()))
        except (OSError, ValueError) as error:
            return "no report", f"{told} {type(error).__name__}"
        if found != wanted:
            return "other figures", f"{told} {[(key, found[key], wanted[key]) for key in wanted if found.get(key) != wanted[key]]}"[:900]
        if left := [p.name for p in out.rglob("*") if p.name.startswith(".") or p.suffix in (".tmp", ".part")]:
            return "half-written files", f"{told} {left}"
        return _exported(r, place, out, told, length)


def _exported(r: random.Random, place: Path, out: Path, told: list[str], length: float) -> tuple[str, str]:
    """A later export that is killed leaves the run's files as they were, or new ones that are whole."""
    before = {p.name: p.read_bytes() for p in out.iterdir() if p.suffix in (".onnx", ".pt2", ".safetensors")}
    code, said, took = _run(["export", str(out), "--to", "onnx", "--force"], place, r.uniform(0.05, 0.6) * length)
    told.append(f"export {took:.1f} s: {'killed' if code is None else code}")
    for name, content in before.items():
        if not (out / name).exists() or (name != "model.onnx" and (out / name).read_bytes() != content):
            return "an export is gone", f"{told} {name}"
    code, said, _ = _run(["export", str(out), "--to", "onnx", "--force"], place, None)
    if code not in (0, 3):
        return "not exported", f"{told} {code} {said[-300:]}"
    return "fine", str(told)
