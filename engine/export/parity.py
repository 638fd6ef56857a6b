"""A file in its own runtime, against the model that was measured: the same answers on test data."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Generator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import torch
from torch import Tensor

from engine.errors import EngineError
from engine.events.cancellation import StopToken
from engine.events.event import Event
from engine.events.progress import Ticker
from engine.export.base import Given, Runner
from engine.export.registry import Format
from engine.numerics.sqnr import sqnr_db
from engine.tasks.base import Task

_PATIENCE = 600
# Items on which fp32 is run too: enough for its distance, whatever the size of the test split.
_BESIDE = 512


@dataclass(frozen=True)
class Parity:
    """The outputs' distance from those of the measured model: the largest difference, SQNR in dB, the part of equal
    answers (0..1); the task's metric of the file itself, with the half-width of its 95 % interval; and the items compared.
    ``native_sqnr_db`` is of the measured model against fp32 and ``fp32_sqnr_db`` of the file against fp32, on the first items;
    None where fp32 was not at hand."""

    max_abs: float
    sqnr_db: float
    agreement: float
    value: float
    interval: float
    compared: int
    native_sqnr_db: float | None = None
    fp32_sqnr_db: float | None = None


def load(entry: Format, path: Path, given: Given) -> Runner:
    """The file on as many threads as torch has. Raises EngineError for one that is damaged, or not an export of the run."""
    module = import_module(entry.module)
    tried(entry, path, getattr(module, "TRIAL", ""))
    runner: Runner = module.load(path, given, torch.get_num_threads())
    try:
        got = _answer(runner, given.images[:2])
    except EngineError:
        raise
    except Exception as error:
        raise EngineError(f"{path} does not run ({type(error).__name__}): it is damaged or not an export of this run") from error
    wanted = given.model(given.images[:2])
    if got.shape != wanted.shape or got.dtype != wanted.dtype:
        raise EngineError(
            f"{path} gives {tuple(got.shape)} where the run's model gives {tuple(wanted.shape)}: it is not an export of this run"
        )
    return runner


def tried(entry: Format, path: Path, trial: str) -> None:
    """Carry out ``trial`` on the file in a child process: a runtime that crashes on a file must not take the program with it.
    Raises EngineError for a crash; what else goes wrong shows again where the file is loaded."""
    if not trial:
        return
    command = [sys.executable, "-c", trial, str(path)]
    try:
        # In a session of its own: a Ctrl-C or hang-up that is meant for the run is no crash of the runtime.
        done = subprocess.run(command, capture_output=True, timeout=_PATIENCE, check=False, start_new_session=True)
    except (OSError, subprocess.SubprocessError) as error:
        raise EngineError(f"{entry.title} does not load {path} in a process of its own ({type(error).__name__})") from error
    if done.returncode not in (0, 1):
        raise EngineError(f"{entry.title} crashes on {path} (exit code {done.returncode}): use another format, or another version of it")


def compare(
    runner: Runner, given: Given, task: Task, batch: int, limit: int | None, stop: StopToken, stage: str = "export",
    fp32: Callable[..., Tensor] | None = None,
) -> Generator[Event, None, Parity]:  # fmt: skip
    """Both models on the test split, or the first ``limit`` items of it, and ``fp32`` beside them on a few. Raises EngineError for
    a file's logits that are not finite where the model's are."""
    total = task.count("test", limit)
    ticker = Ticker(stage, total, task.unit, clock=stop.clock)
    signal = noise = worst = 0.0
    same = answered = seen = 0
    exact = native = exported = 0.0
    evaluator = task.evaluator()
    with torch.inference_mode():
        for part in task.batches("test", batch=batch, limit=limit):
            stop.check()
            laid_out = part.laid_out().args
            wanted, got = given.model(*laid_out), _answer(runner, part.args[0])
            if wanted.isfinite().all() and not got.isfinite().all():
                raise EngineError("its logits are NaN or infinite: use another format, or another version of the runtime")
            difference = (wanted - got).double()
            worst = max(worst, difference.abs().max().item())
            signal += wanted.double().square().sum().item()
            noise += difference.square().sum().item()
            first, second = task.answers((wanted,)), task.answers((got,))
            if first is not None and second is not None:
                same += int((first == second).sum())
                answered += first.numel()
            evaluator.update(got, part.targets)
            if fp32 is not None and seen < _BESIDE:
                reference, seen = fp32(*laid_out).double(), seen + part.count
                exact += reference.square().sum().item()
                native += (wanted - reference).square().sum().item()
                exported += (got - reference).square().sum().item()
            yield from ticker.advance(part.count)
    value = evaluator.compute()[task.metric.name]
    beside = (sqnr_db(exact, native), sqnr_db(exact, exported)) if seen else (None, None)
    return Parity(worst, sqnr_db(signal, noise), same / max(answered, 1), value.value, value.interval, total, *beside)


def _answer(runner: Runner, x: Tensor) -> Tensor:
    return torch.as_tensor(runner.run(runner.hold(x)))
