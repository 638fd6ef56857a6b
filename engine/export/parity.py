"""A file in its own runtime, against the model that was measured: the same outputs and answers on test data."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map, tree_structure

from engine.errors import EngineError
from engine.events.cancellation import StopToken
from engine.events.event import Event
from engine.events.progress import Ticker
from engine.export.base import ExportContext, Logits, Runner
from engine.export.registry import Format
from engine.lowering.graph.call import results_of
from engine.numerics.sqnr import sqnr_db
from engine.reading import regular
from engine.tasks.base import Batch, Forward, Task
from engine.tasks.decode_timing import Step

_PATIENCE = 600
# Items on which fp32 is run too: enough for its distance, whatever the size of the test split.
_BESIDE = 512
# Tokens of each sequence that go one by one through the cache.
SINGLE = 16


@dataclass(frozen=True)
class Parity:
    """The outputs' distance from those of the measured model: the largest difference, SQNR in dB, and the part of equal answers
    (0..1), None where the task has none; and the items compared.

    ``value`` is the task's metric of the file itself, with the half-width of its 95 % interval; ``rise``, of a metric that is judged by
    ratios, is by how much it is higher than the measured model's on the same items. ``native_sqnr_db`` is of the measured model against
    fp32, ``native_agreement`` the part of answers in which these two are the same, and ``fp32_sqnr_db`` of the file against fp32, on
    the first items; None where fp32 was not at hand."""

    max_abs: float
    sqnr_db: float
    agreement: float | None
    value: float
    interval: float
    rise: float | None
    compared: int
    native_sqnr_db: float | None = None
    fp32_sqnr_db: float | None = None
    native_agreement: float | None = None

    def entry(self, task: Task) -> dict[str, Any]:
        """The report's ``parity``."""
        name = task.metric.name
        beside = {name: self.value, f"{name}_rise": self.rise} if task.metric.relative else {}
        return {
            "max_abs": self.max_abs, "sqnr_db": self.sqnr_db, "agreement": self.agreement, "compared": self.compared, **beside,
            "native_sqnr_db": self.native_sqnr_db, "fp32_sqnr_db": self.fp32_sqnr_db,
            "native_agreement": self.native_agreement,
        }  # fmt: skip


def load(entry: Format, path: Path, context: ExportContext) -> Runner:
    """The file in its runtime. Raises EngineError for one that is damaged, or not an export of the run."""
    if not path.is_dir():
        try:
            regular(path)
        except OSError as error:
            raise EngineError(f"{path} cannot be read ({error.strerror}): export it again") from error
    module = entry.module(context.lowering)
    tried(entry, path, getattr(module, "TRIAL", ""))
    found: Runner = module.load(path, context)
    return found


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
    runner: Runner, measured: Forward, task: Task, batch: int, limit: int | None, stop: StopToken, stage: str = "export",
    fp32: Forward | None = None,
) -> Generator[Event, None, tuple[Parity, Parity | None]]:  # fmt: skip
    """Both models on what the task compares files on, and ``fp32`` beside them on a few items; and, of a task whose outputs are also
    made step by step, the same over a cache, the last ``SINGLE`` tokens of each sequence one by one.

    Raises EngineError for a file whose outputs are of another form, or not finite where the model's are; Cancelled on stop."""
    ticker = Ticker(stage, task.compared_count(limit), task.unit, clock=stop.clock)
    forms: list[tuple[_Sums, Callable[[Batch], Any]]] = [(_Sums(task), _checked(runner))]
    if task.stepwise and runner.step is not None:
        step = runner.step
        forms.append((_Sums(task), lambda part: Logits(_by_steps(step, part.kwargs["input_ids"].cpu(), stop))))
    # Only ratios are told beside the measured model's own value: an interval of one's own metric may take long.
    reference = task.evaluator() if task.metric.relative else None
    seen = 0
    with torch.inference_mode():
        for part in task.compared(batch=batch, limit=limit):
            stop.check()
            laid_out = part.laid_out()
            wanted = measured(laid_out)
            exact = fp32(laid_out) if fp32 is not None and (task.judged_by_fp32 or seen < _BESIDE) else None
            seen += part.count
            if reference is not None:
                reference.update(wanted, task.held_against(exact, part.targets))
            for sums, run in forms:
                sums.add(run(part), wanted, exact, part)
                stop.check()
            yield from ticker.advance(part.count)
    value = reference.compute()[task.metric.name].value if reference is not None else None
    whole, *cached = (sums.parity(value) for sums, _ in forms)
    return whole, next(iter(cached), None)


def _checked(runner: Runner) -> Callable[[Batch], Any]:
    def run(part: Batch) -> Any:
        try:
            return runner.run(part)
        except EngineError:
            raise
        except Exception as error:
            raise EngineError(f"it does not run ({type(error).__name__}): it is damaged or not an export of this run") from error

    return run


def _by_steps(step: Step, ids: Tensor, stop: StopToken) -> Tensor:
    first = max(ids.shape[1] - SINGLE, 1)
    logits, cache = step(ids[:, :first], None)
    found = [logits]
    for place in range(first, ids.shape[1]):
        stop.check()
        logits, cache = step(ids[:, place : place + 1], cache)
        found.append(logits)
    return torch.cat(found, 1)


class _Sums:
    """Of one way to run a file over all that is compared, in doubles."""

    def __init__(self, task: Task) -> None:
        self._task, self._evaluator = task, task.evaluator()
        self.worst = self.signal = self.noise = self.exact = self.native = self.exported = 0.0
        self.same = self.answered = self.same_native = self.answered_native = self.items = 0
        self.beside = False

    def add(self, raw: Any, wanted_raw: Any, exact_raw: Any, part: Batch) -> None:
        """Raw outputs of a batch: of the file, of the measured model and of fp32, None without."""
        task = self._task
        raw = _of_one_rank(raw, wanted_raw) if part.count == 1 else raw
        found, wanted = task.outputs(raw), task.outputs(wanted_raw)
        if not isinstance(raw, Logits):
            _check_form(results_of(raw), results_of(wanted_raw))
        _check_form(found, wanted)
        _check_finite(found, wanted)
        for got, expected in _pairs(found, wanted):
            difference = (got - expected).double()
            self.worst = max(self.worst, difference.abs().max().item() if difference.numel() else 0.0)
            self.signal += _energy(expected)
            self.noise += _energy(difference)
        first, second = task.answers(wanted), task.answers(found)
        if exact_raw is not None:
            self.beside = True
            outputs = task.outputs(exact_raw)
            for got, expected, exact in zip(found, wanted, outputs, strict=True):
                true = exact.to(expected.device).double()
                self.exact += _energy(true)
                self.native += _energy(expected - true)
                self.exported += _energy(got.to(true.device) - true)
            if first is not None and (true_answers := task.answers(outputs)) is not None:
                self.same_native += int((first == true_answers.to(first.device)).sum())
                self.answered_native += first.numel()
        if first is not None and second is not None:
            self.same += int((first == second.to(first.device)).sum())
            self.answered += first.numel()
        self._evaluator.update(raw, task.held_against(exact_raw, part.targets))
        self.items += part.count

    def parity(self, reference: float | None) -> Parity:
        found = self._evaluator.compute()[self._task.metric.name]
        measured, exported = (sqnr_db(self.exact, noise) if self.beside else None for noise in (self.native, self.exported))
        agreement = self.same / self.answered if self.answered else None
        noise, rise = sqnr_db(self.signal, self.noise), None if reference is None else found.value - reference
        native = self.same_native / self.answered_native if self.answered_native else None
        return Parity(self.worst, noise, agreement, found.value, found.interval, rise, self.items, measured, exported, native)


def _of_one_rank(raw: Any, wanted: Any) -> Any:
    """A file's outputs for one item, in the shapes of a model that drops the batch there, as ``squeeze()`` does."""

    def shaped(got: Any, like: Any) -> Any:
        dropped = isinstance(got, Tensor) and isinstance(like, Tensor) and got.dim() == like.dim() + 1 and got.shape[1:] == like.shape
        return got.reshape(like.shape) if dropped and got.shape[0] == 1 else got

    return tree_map(shaped, raw, wanted) if tree_structure(raw) == tree_structure(wanted) else raw


def _check_form(found: tuple[Tensor, ...], wanted: tuple[Tensor, ...]) -> None:
    if [(x.shape, x.dtype) for x in found] != [(x.shape, x.dtype) for x in wanted]:
        forms = (", ".join(str(tuple(x.shape)) for x in tensors) for tensors in (found, wanted))
        raise EngineError("it gives {} where the run's model gives {}: it is not an export of this run".format(*forms))


def _check_finite(found: tuple[Tensor, ...], wanted: tuple[Tensor, ...]) -> None:
    for got, expected in _pairs(found, wanted):
        if expected.isfinite().all() and not got.isfinite().all():
            raise EngineError("its outputs are NaN or infinite: use another format, or another version of the runtime")


def _pairs(found: tuple[Tensor, ...], wanted: tuple[Tensor, ...]) -> Iterator[tuple[Tensor, Tensor]]:
    for got, expected in zip(found, wanted, strict=True):
        yield got.to(expected.device), expected


def _energy(x: Tensor) -> float:
    return x.double().square().sum().item()
