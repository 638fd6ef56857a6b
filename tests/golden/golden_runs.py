"""Carry out a golden run and take down what must not move, by the public surface alone: recipe, command line, and the run's files."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import golden_models as models
import torch
from golden_cases import Case

import engine
from engine.kernels.jit.compiler import SWITCH

HERE = Path(__file__).parent
REPOSITORY = HERE.parents[1]
RECORDED = HERE / "recorded"
ARTIFACTS = HERE / "artifacts"

# Measured by a clock, or the name of a version, a path or a file's hash with a recipe's paths in it.
_VARIES = {
    "latency_ms", "latency_batched_ms", "latency", "speedup", "seconds", "time_share", "tokens_per_second", "sha256", "runtime",
    "python", "torch", "transformers", "threads", "order_key",
}  # fmt: skip
# Keys whose value is there or null as the clock has it.
_OPEN = {"speedup"}
_TIMED_CLAUSE = re.compile(r"\d ms\b|\bfaster\b|\bslower\b|as fast|could not be timed|the machine is busy|too busy for steady times")
_TIME_SHARE = re.compile(r"[\d.]+ % of the time")


@contextmanager
def inside(folder: Path) -> Iterator[None]:
    """In ``folder``, with the models of the golden runs importable, one thread, no compiled kernels (they are optional), and a cache
    that is shared by all runs in it."""
    before, threads, compiled = Path.cwd(), torch.get_num_threads(), os.environ.get(SWITCH)
    os.environ[SWITCH] = "0"
    os.chdir(folder)
    sys.path.insert(0, str(HERE))
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        sys.path.remove(str(HERE))
        os.chdir(before)
        os.environ.pop(SWITCH)
        if compiled is not None:
            os.environ[SWITCH] = compiled


def command(folder: Path, *words: str, timeout: float = 600) -> subprocess.CompletedProcess[str]:
    """``python -m qtui`` with ``words``, in ``folder``."""
    arguments = [sys.executable, "-m", "qtui", *words]
    return subprocess.run(arguments, cwd=folder, env=child_environment(), capture_output=True, text=True, timeout=timeout, check=False)


def child_environment() -> dict[str, str]:
    """One thread, no compiled kernels, and the models of the golden runs importable."""
    found = os.pathsep.join((str(REPOSITORY), str(HERE)))
    return {**os.environ, "PYTHONPATH": found, "OMP_NUM_THREADS": "1", SWITCH: "0", "COLUMNS": "160", "NO_COLOR": "1"}


def machine_class(report: dict[str, Any]) -> str:
    """What decides how floats are summed: the instruction set that the run reports, and whose processor it is."""
    environment = report["environment"]
    return f"{environment['isa']}, {'VNNI' if environment['vnni'] else 'no VNNI'}, {processor_maker()}"


def processor_maker() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("vendor_id")), platform.machine())


def torch_minor() -> str:
    return ".".join(torch.__version__.split(".")[:2])


def carry_out(case: Case, folder: Path) -> dict[str, Any]:
    """Run ``case`` in ``folder``, which holds the inputs, and return what was found, in two parts: ``everywhere`` and ``machine``."""
    recipe, out = engine.Recipe.make(**case.fields), Path(case.name) / "run"
    with inside(folder):
        if case.command:
            (folder / case.name).mkdir()
            asked = folder / case.name / "asked.yaml"
            asked.write_text(recipe.to_yaml())
            done = command(folder, "run", "--recipe", str(asked), "--out", str(out), "--yes")
            assert (folder / out / "report.json").exists(), done.stdout + done.stderr
            code: int | None = done.returncode
        else:
            engine.quantize(recipe, out)
            code = None
        return look(case, recipe, out, code)


def look(case: Case, recipe: engine.Recipe, out: Path, code: int | None) -> dict[str, Any]:
    """What a finished run left behind."""
    report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    tensors = digests(out / "model.safetensors")
    shapes = {name: {"dtype": found["dtype"], "shape": found["shape"]} for name, found in tensors.items()}
    fixed = {name: found["sha256"] for name, found in tensors.items() if name.startswith(case.everywhere)}
    figures = flat(_cleaned(report))
    # The faster of fp32's two layouts.
    del figures["baseline.kernel"]
    return {
        "everywhere": {
            "fingerprint": recipe.fingerprint(),
            "exit_code": code,
            "keys": sorted(keys(report)),
            "events": events(out / "events.jsonl"),
            "recipe": written_recipe(out / "recipe.yaml"),
            "tensors": shapes,
            "sha256": fixed,
        },
        "machine": {
            "class": machine_class(report),
            "torch": torch_minor(),
            "sha256": {name: found["sha256"] for name, found in tensors.items() if name not in fixed},
            "outputs": outputs(case, out),
            "figures": figures,
        },
    }


def digests(path: Path) -> dict[str, dict[str, Any]]:
    """dtype, shape and SHA-256 of each tensor's bytes."""
    from safetensors import safe_open

    found: dict[str, dict[str, Any]] = {}
    with safe_open(path, "pt") as file:
        for name in sorted(file.keys()):
            value = file.get_tensor(name).contiguous()
            content = value.reshape(-1).view(torch.uint8).numpy().tobytes()
            found[name] = {"dtype": str(value.dtype), "shape": list(value.shape), "sha256": hashlib.sha256(content).hexdigest()}
    return found


def outputs(case: Case, out: Path) -> dict[str, Any]:
    """SHA-256 of what the loaded model gives for fixed inputs, and the first of it as numbers."""
    model = engine.load_quantized(out)
    given = models.tokens(1, 24, 2048) if case.reads_text else models.images(4, 64 if case.name.startswith("mobilenet") else 32)
    with torch.no_grad():
        values = model(given).float().contiguous()
    return {"sha256": hashlib.sha256(values.numpy().tobytes()).hexdigest(), "first": values.reshape(-1)[:8].tolist()}


def written_recipe(path: Path) -> list[str]:
    """The lines of ``recipe.yaml``, without the machine's and with paths relative to where the run was started."""
    here = str(Path.cwd()) + os.sep
    real = str(Path.cwd().resolve()) + os.sep
    text = path.read_text(encoding="utf-8").replace(real, "").replace(here, "")
    return [line for line in text.splitlines() if not line.startswith("isa:")]


def events(path: Path) -> dict[str, Any]:
    """The stages and questions in order, and the fields of each kind of event."""
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    order = [f"{e['event']} {e.get('stage') or e.get('key')}" for e in lines if e["event"] in ("StageStarted", "StageFinished", "Ask")]
    kinds: dict[str, set[str]] = {}
    for event in lines:
        kinds.setdefault(event["event"], set()).update(event)
    return {"order": order, "fields": {kind: sorted(names) for kind, names in sorted(kinds.items())}}


def keys(value: Any, place: str = "") -> set[str]:
    """Each path in the report with the type that is found there; a list's entries are ``[]``. A whole float is a float."""
    if place.rpartition(".")[2] in _OPEN:
        return {f"{place}: varies"}
    if isinstance(value, dict):
        return {f"{place}: object"}.union(*(keys(inner, f"{place}.{key}" if place else key) for key, inner in value.items()))
    if isinstance(value, list):
        return {f"{place}: list"}.union(*(keys(inner, f"{place}[]") for inner in value))
    name = "null" if value is None else "number" if type(value) in (int, float) else type(value).__name__
    return {f"{place}: {name}"}


def _cleaned(value: Any) -> Any:
    """The report without what a clock, a version or a path decides."""
    if isinstance(value, dict):
        return {key: _cleaned(inner) for key, inner in value.items() if key not in _VARIES}
    if isinstance(value, list):
        return [_cleaned(inner) for inner in value]
    if isinstance(value, str):
        clauses = [part for part in value.split("; ") if not _TIMED_CLAUSE.search(part)]
        return _TIME_SHARE.sub("a part of the time", "; ".join(clauses)).replace(str(Path.cwd()), ".")
    return value


def flat(value: Any, place: str = "") -> dict[str, Any]:
    """The leaves, by their path. A list of things with names is walked by name."""
    if isinstance(value, dict) and value:
        return {path: leaf for key, inner in value.items() for path, leaf in flat(inner, f"{place}.{key}" if place else key).items()}
    if isinstance(value, list) and value:
        found: dict[str, Any] = {}
        for index, inner in enumerate(value):
            name = next((inner[key] for key in ("name", "layer", "format") if isinstance(inner, dict) and key in inner), index)
            found |= flat(inner, f"{place}[{name}]")
        return found
    return {place: value}
