"""A file in its own runtime, against the model that was measured: the same answers on test data."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Generator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import torch
from torch import Tensor

from engine.data.images.base import Data
from engine.errors import EngineError
from engine.events.cancellation import StopToken
from engine.events.event import Event
from engine.events.progress import Ticker
from engine.export.base import Given, Runner
from engine.export.registry import Format
from engine.numerics.sqnr import sqnr_db
from engine.tasks.evaluation import interval

_PATIENCE = 600


@dataclass(frozen=True)
class Parity:
    """The outputs' distance from those of the measured model: the largest difference, SQNR in dB, the part of equal top-1
    answers (0..1); top-1 of the file itself (0..1), with the half-width of its 95 % interval; and the images compared."""

    max_abs: float
    sqnr_db: float
    agreement: float
    value: float
    interval: float
    compared: int


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
    runner: Runner, given: Given, data: Data, batch: int, limit: int | None, stop: StopToken, stage: str = "export"
) -> Generator[Event, None, Parity]:
    """Both models on the test split, or the first ``limit`` images of it. Raises EngineError for a file's logits that are not
    finite where the model's are."""
    total = data.count("test", limit)
    ticker = Ticker(stage, total, "img", clock=stop.clock)
    signal = noise = worst = 0.0
    same = right = 0
    with torch.inference_mode():
        for x, y in data.batches("test", batch, limit=limit):
            stop.check()
            wanted, got = given.model(x.contiguous(memory_format=torch.channels_last)), _answer(runner, x)
            if wanted.isfinite().all() and not got.isfinite().all():
                raise EngineError("its logits are NaN or infinite: use another format, or another version of the runtime")
            difference = (wanted - got).double()
            worst = max(worst, difference.abs().max().item())
            signal += wanted.double().square().sum().item()
            noise += difference.square().sum().item()
            same += int((wanted.argmax(1) == got.argmax(1)).sum())
            right += int((got.argmax(1) == y).sum())
            yield from ticker.advance(len(x))
    return Parity(worst, sqnr_db(signal, noise), same / total, right / total, interval(right, total), total)


def _answer(runner: Runner, x: Tensor) -> Tensor:
    return torch.as_tensor(runner.run(runner.hold(x)))
