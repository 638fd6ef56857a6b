"""A scripted engine: what the console needs of it, without torch. Also run by child processes."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from engine.errors import Cancelled, EngineError, UsageError
from engine.events import event as ev
from engine.events.cancellation import StopToken

QUESTIONS = (
    ("trace", "trace?"),
    ("analyze", "analyze for optimization?"),
    ("optimize", "optimize (fuse)?"),
    ("quantize", "quantize?"),
)

# The modules of the engine that ``install`` replaces.
REPLACED = ("engine.runs.pipeline", "engine.report.report", "engine.runs.rundir")


@dataclass
class Report:
    data: dict[str, Any] = field(default_factory=lambda: {"schema": 1, "model": "simplecnn"})
    met: bool = True

    def to_json(self) -> str:
        return json.dumps(self.data)

    def to_markdown(self) -> str:
        return "# a report\n"

    def shown(self, directory: Path) -> str:
        return self.to_markdown()

    @classmethod
    def load(cls, directory: Path) -> Report:
        if not (directory / "report.json").exists():
            raise EngineError(f"{directory} has no report.json: the run did not finish")
        return cls()


@dataclass(frozen=True)
class RunSummary:
    directory: Path
    started: str
    model: str
    data: str
    state: str
    chosen: str | None
    baseline: float | None
    value: float | None
    text: str


LAYERS = (
    ("conv1", "Conv2d", "w8 per-channel, a8 per-tensor", "w8 per-channel, a7 per-tensor", "onednn.qconv_pointwise", "first layer", "41.2"),
    (
        "fc1",
        "Linear",
        "w4 per-group, a8",
        "w4 per-group, a7",
        "onednn.qlinear_pointwise",
        "most of the weights: nibbles halve them",
        "33.9",
    ),
)
COLUMNS = ("name", "kind", "requested", "actual", "kernel", "reason", "SQNR dB")


def script(answers: list[Any], met: bool = True, pause: float = 0.0, stop: StopToken | None = None) -> Generator[ev.Event, Any, Report]:
    """A run as the pipeline tells it; what was answered is appended to ``answers``."""

    def count(stage: str, total: int) -> Generator[ev.Event, Any, None]:
        for done in range(1, total + 1):
            if pause:
                time.sleep(pause)
            if stop:
                stop.check()
            yield ev.Progress(stage, done * 64, total * 64, "img", 431.7, (total - done) * 0.14)

    stage = "load"
    try:
        yield ev.StageStarted("load", "simplecnn with the packaged weights for digits")
        yield ev.Measured("baseline", {"metric": "accuracy", "value": 0.9972, "size_bytes": 1_480_000, "latency_ms": {"p50": 0.412}})
        yield ev.StageFinished("load", 0.31)
        for key, question in QUESTIONS:
            answers.append((yield ev.Ask(key, question)))  # type: ignore[arg-type]
        stage = "calibrate"
        yield ev.StageStarted("calibrate", "calibrate on 512 images of the training split")
        yield ev.Table("layers", "layers", COLUMNS, LAYERS)
        yield from count("calibrate", 8)
        yield ev.Notice("rule [bold]layer9.*[/bold] matches nothing", "warning")
        yield ev.StageFinished("calibrate", 1.19)
        error = {"mse": 1.9e-05, "sqnr_db": 33.21, "agreement": 0.9972}
        kernel = {"kernel": "onednn.qconv_pointwise", "simulated": False}
        yield ev.Measured("ptq", {"value": 0.9722, "error": error, "size_bytes": 380_000, "latency_ms": {"p50": 0.37}, **kernel})
        if not met:
            answers.append((yield ev.Ask("qat", "QAT?")))
            stage = "train"
            yield ev.StageStarted("train", "QAT: 2 epochs on 1,150 images")
            for epoch in (1, 2):
                yield from count("train", 4)
                yield ev.EpochFinished(epoch, 2, 0.31 / epoch, 0.9833, 0.0071, epoch == 2)
            yield ev.StageFinished("train", 71.0)
        yield ev.Finished("runs/one", met, "ptq: 97.22 % against 99.72 %, drop:0.005 is " + ("met" if met else "not met"))
    except Cancelled:
        yield ev.Stopped("runs/one", stage)
        raise
    return Report(met=met)


def install(start: Callable[..., Any] = script, **kwargs: Any) -> list[Any]:
    """Put scripted modules in the engine's place; returns the list that collects calls and answers."""
    calls: list[Any] = []

    def run(recipe: Any, out: Path | None, stop: StopToken) -> Any:
        calls.append(("run", recipe, out))
        return start(calls, stop=stop, **kwargs)

    def resume(directory: Path, stop: StopToken) -> Any:
        calls.append(("resume", directory))
        return start(calls, stop=stop, **kwargs)

    def train(model: str, data: str, **asked: Any) -> Generator[ev.Event, None, Path]:
        calls.append(("train", model, data, asked))
        yield ev.StageStarted("train", "training")
        return Path("weights.safetensors")

    def find_run(name: str) -> Path:
        if not Path(name).is_dir():
            raise UsageError(f"no run {name}")
        return Path(name)

    def list_runs(root: Path) -> list[RunSummary]:
        return [
            RunSummary(
                root / "20260101-simplecnn-digits", "2026-01-01T10:20:30", "simplecnn", "digits", "finished", "ptq", 0.99, 0.98, "met"
            ),
            RunSummary(root / "20260101-gpt2", "2026-01-01T09:20:30", "gpt2", "text", "cancelled", None, 23.4, None, "stopped"),
        ]

    modules: dict[str, dict[str, Any]] = {
        "engine.runs.pipeline": {"run": run, "resume": resume, "train": train},
        "engine.report.report": {"Report": Report},
        "engine.runs.rundir": {"RunSummary": RunSummary, "find_run": find_run, "list_runs": list_runs, "runs_root": lambda: Path("runs")},
    }
    assert tuple(modules) == REPLACED
    for name, content in modules.items():
        room, _, last = name.rpartition(".")
        module = ModuleType(name)
        for attribute, value in content.items():
            setattr(module, attribute, value)
        setattr(import_module(room), last, module)
        sys.modules[name] = module
    return calls


if __name__ == "__main__":
    from qtui.__main__ import main

    keys: dict[str, Any] = {"met": sys.argv[1] != "miss", "pause": float(sys.argv[2])}
    install(**keys)
    sys.exit(main(sys.argv[3:]))
