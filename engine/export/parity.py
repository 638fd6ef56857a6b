"""A file in its own runtime, against the model that was measured: the same answers on test data."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from engine.errors import EngineError
from engine.events.cancellation import StopToken
from engine.events.event import Event
from engine.events.progress import Ticker
from engine.export.base import Given, Runner
from engine.export.registry import Format
from engine.lowering.graph.runtime import QuantizedModel
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
        got = answers(runner, given.items(0, 2))
    except EngineError:
        raise
    except Exception as error:
        raise EngineError(f"{path} does not run ({type(error).__name__}): it is damaged or not an export of this run") from error
    wanted = _tensors(given.model.flat(*given.items(0, 2)))
    if [(x.shape, x.dtype) for x in got] != [(x.shape, x.dtype) for x in wanted]:
        shapes = [" and ".join(str(tuple(x.shape)) for x in results) for results in (got, wanted)]
        raise EngineError(f"{path} gives {shapes[0]} where the run's model gives {shapes[1]}: it is not an export of this run")
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
    fp32: Callable[..., Any] | None = None,
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
            laid_out = part.laid_out()
            answer = _structured(given.model, answers(runner, given.model.inputs_of(part)))
            wanted, got = (task.outputs(raw) for raw in (given.model(*laid_out.args, **laid_out.kwargs), answer))
            if _finite(wanted) and not _finite(got):
                raise EngineError("its outputs are NaN or infinite: use another format, or another version of the runtime")
            worst = max([worst, *((a - b).double().abs().max().item() for a, b in zip(wanted, got, strict=True) if a.numel())])
            signal += _power(wanted)
            noise += _power(wanted, got)
            first, second = task.answers(wanted), task.answers(got)
            if first is not None and second is not None:
                same += int((first == second).sum())
                answered += first.numel()
            evaluator.update(answer, part.targets)
            if fp32 is not None and seen < _BESIDE:
                reference, seen = task.outputs(fp32(*laid_out.args, **laid_out.kwargs)), seen + part.count
                exact += _power(reference)
                native += _power(reference, wanted)
                exported += _power(reference, got)
            yield from ticker.advance(part.count)
    value = evaluator.compute()[task.metric.name]
    beside = (sqnr_db(exact, native), sqnr_db(exact, exported)) if seen else (None, None)
    return Parity(worst, sqnr_db(signal, noise), same / max(answered, 1), value.value, value.interval, total, *beside)


def answers(runner: Runner, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """A file's results in order, for a program's inputs in order."""
    return _tensors(runner.run(runner.hold(*inputs)))


def _tensors(raw: Any) -> tuple[Tensor, ...]:
    return tuple(map(torch.as_tensor, raw)) if isinstance(raw, tuple | list) else (torch.as_tensor(raw),)


def _structured(model: QuantizedModel, results: tuple[Tensor, ...]) -> Any:
    """The results as what the model returns."""
    call = model.program.call
    return results[0] if call is None else call.rebuild(results)


def _finite(outputs: Sequence[Tensor]) -> bool:
    return all(bool(x.isfinite().all()) for x in outputs)


def _power(outputs: Sequence[Tensor], others: Sequence[Tensor] | None = None) -> float:
    """The sum of squares, or that of the differences, in doubles."""
    if others is None:
        return sum(x.double().square().sum().item() for x in outputs)
    return sum((a.double() - b.double()).square().sum().item() for a, b in zip(outputs, others, strict=True))
