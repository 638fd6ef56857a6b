"""The one interface over the ways in which a model becomes integers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar

from torch import nn

from engine.errors import EngineError
from engine.events.cancellation import StopToken
from engine.events.event import Event, Inspected, Needs, Table
from engine.kernels.probe import Machine
from engine.lowering import inspecting, sensitivity
from engine.planning.layer import Layer
from engine.planning.plan import Plan
from engine.planning.sensitivity import Candidate, Sensitivity
from engine.recipe.decisions import Answer
from engine.recipe.recipe import Recipe
from engine.recipe.spec import LayerSpec
from engine.recipe.threshold import Threshold
from engine.tasks.base import Batch, Forward, Task, forward_of
from engine.tasks.subject import Subject

T = TypeVar("T")
# Weights that are rounded once more for a look at them.
_INSPECTED = 30_000_000
Steps = Generator[Event, Answer, T]


class RunContext(Protocol):
    """What a lowering may ask of the run that it works for."""

    recipe: Recipe
    machine: Machine
    stop: StopToken
    attended: bool
    threshold: Threshold

    @property
    def directory(self) -> Path: ...

    @property
    def identity(self) -> str:
        """What was asked, as 16 hex digits, wherever the run is started from."""
        ...

    def stage(self, name: str, title: str, steps: Generator[Event, Any, T]) -> Steps[T]: ...

    def ask(self, key: Any, question: str, needed: bool = False, default: bool = True) -> Steps[Answer]: ...

    def change(self, recipe: Recipe) -> Steps[None]: ...

    def keep(self, recipe: Recipe) -> None: ...


@dataclass(frozen=True)
class Baseline:
    """The best fp32 model. ``forms`` are by name, the first is the reference; the fastest of them is what others are compared
    with. ``details`` are what the report's ``baseline`` tells besides."""

    forms: Mapping[str, nn.Module]
    size_bytes: int
    details: Mapping[str, Any] = field(default_factory=dict)

    @property
    def reference(self) -> nn.Module:
        return next(iter(self.forms.values()))


class Content(Protocol):
    """The files of a quantized model that is too large to be bytes in memory; ``len`` is their bytes."""

    def __len__(self) -> int: ...

    def write(self, directory: Path) -> tuple[str, ...]:
        """Put them into ``directory``; their names, the one to open first. Raises EngineError."""
        ...


@dataclass(frozen=True)
class Quantized:
    """A quantized model as it runs here. ``model`` is its executor, ``content`` its file; ``kernels`` name what computes it,
    ``stored`` counts the layers that are integers on disk alone; ``seconds`` were spent before this run, on what it took over.
    ``state`` is the lowering's own, and ``details`` what the report's entry tells besides."""

    model: Any
    content: bytes | Content
    kernels: tuple[str, ...]
    simulated: bool
    integer_layers: int
    stored: int
    state: Any
    seconds: float = 0.0
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Reopened:
    """The model of a finished run's file, in the form that exports take; ``recipe`` (YAML) and ``isa`` are those that the file names.
    ``warnings`` are sentences for a person."""

    model: Any
    recipe: str
    isa: str
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Trained:
    """What QAT came to: each epoch's training loss and validation value, and the best epoch (counted from 1). ``state`` is the
    lowering's own."""

    losses: tuple[float, ...]
    values: tuple[float, ...]
    best_epoch: int
    state: Any


class NotWhole(EngineError):
    """A lowering cannot take a model as a whole; another one may take it in parts. ``reason`` says why, without advice."""

    def __init__(self, message: str, reason: str = "") -> None:
        super().__init__(message)
        self.reason = reason or message


class Lowering(ABC):
    """One way to integers, for one run. Its methods are called in the order in which they stand here."""

    name: ClassVar[str]
    # The lowering that takes its place where ``capture`` raises NotWhole.
    instead: ClassVar[str | None] = None
    # Whether figures are the processor's wherever the run calibrates and trains.
    measures_on_cpu: ClassVar[bool] = False
    training_question: ClassVar[str] = "Train with quantization"
    # The recipe's keys of repairs that it makes, the cheapest first.
    repairs: ClassVar[tuple[str, ...]] = ()

    def __init__(self, subject: Subject, run: RunContext, refused: NotWhole | None = None) -> None:
        """``refused`` is why the lowering whose place this one takes could not take the model."""
        self.subject, self.run, self.refused = subject, run, refused

    @abstractmethod
    def capture(self) -> Steps[None]:
        """Look at the model and make it ready, asking on the way."""

    @abstractmethod
    def baseline(self) -> Baseline:
        """The fp32 model that the quantized one is compared with."""

    @abstractmethod
    def layers(self) -> Sequence[Layer]:
        """Every module that holds parameters, and what can be had of it, as far as is known by now: what is planned."""

    @abstractmethod
    def plan(self) -> Generator[Event, None, Plan]:
        """What each layer is to become by the recipe as it is by now. It is called again for each strategy that is asked for."""

    def settle(self, plan: Plan) -> Steps[Plan]:
        """Write into the recipe what was measured to make the plan, and prepare the model for it; the plan as it is then."""
        yield from ()
        return plan

    def needs(self, plan: Plan, place: Path) -> Needs | None:
        """What a run by ``plan`` takes where its files lie in ``place``; None where shapes alone do not tell."""
        return None

    def sensitive(self, plan: Plan, only: Mapping[str, Sequence[Candidate]] | None = None) -> sensitivity.Subject | None:
        """The fp32 model and its layers, as ``sensitivity`` takes them, with all candidates or with ``only`` these by path; None where
        there is nothing to estimate."""
        return None

    def sensitivity(self, plan: Plan) -> Generator[Event, None, Sensitivity]:
        """What each candidate of each layer of ``plan`` costs alone: estimated on calibration items. Yields Notice, Progress and
        ``Sensitivities``. Raises Cancelled on stop."""
        subject = self.sensitive(plan)
        if subject is None:
            return Sensitivity((), "noise", 0)
        run = self.run
        return (yield from sensitivity.estimate(subject, self.subject.task, run.recipe.data.calibration, run.stop, run.recipe.seed))

    def harm(self, plan: Plan) -> Generator[Event, None, Sensitivity]:
        """What each layer costs as ``plan`` has it, on few calibration items: for the report."""
        only = {
            row.path: tuple(
                candidate
                for candidate, is_there in (
                    (Candidate(row.actual.weights), row.actual.weights is not None and row.tied is None),
                    (Candidate(activations=row.actual.activations), row.actual.weights is not None and row.actual.activations is not None),
                )
                if is_there
            )
            for row in plan.layers if row.editable
        }  # fmt: skip
        subject = self.sensitive(plan, only)
        if subject is None:
            return Sensitivity((), "noise", 0)
        run = self.run
        steps = sensitivity.estimate(
            subject, self.subject.task, run.recipe.data.calibration, run.stop, run.recipe.seed, quick=True
        )  # fmt: skip
        return (yield from steps)

    def measured_sensitivity(
        self, plan: Plan, found: Sensitivity, wanted: Sequence[tuple[str, str]] | None = None
    ) -> Generator[Event, None, Sensitivity]:
        """``found`` with what the metric loses on validation, candidate by candidate; ``wanted`` names some as (path, candidate). What
        was measured is kept in the run's folder, and not measured again. Raises Cancelled within a batch."""
        subject = self.sensitive(plan)
        if subject is None:
            return found
        run, identity = self.run, f"{self.subject.fingerprint} {self.run.recipe.data.name}"
        steps = sensitivity.measure(
            subject, self.subject.task, found, run.directory, run.stop, run.recipe.data.batch, identity, wanted
        )  # fmt: skip
        return (yield from steps)

    def inspect(self, plan: Plan, path: str, spec: LayerSpec) -> Generator[Event, None, None]:
        """One layer before and after it becomes ``spec``. Yields Progress and ``Inspected``, which has no row where there is nothing to
        look at. Raises Cancelled on stop."""
        only = {path: (Candidate(inspecting.by_weights(spec.weights)),)} if spec.weights else {}
        subject = self.sensitive(plan, only) if only else None
        if subject is None or not subject.sites:
            yield Inspected(())
        else:
            yield from inspecting.inspect(subject, spec, self.subject.task, self.run.recipe.data.calibration, self.run.stop)

    def inspected(self, plan: Plan) -> Generator[Event, None, None]:
        """The weights of all layers of ``plan`` before and after rounding, where that takes a moment alone: for the report's microscope."""
        rows = {row.path: row for row in plan.layers if row.editable and row.actual.weights is not None and row.tied is None}
        if not rows or sum(row.params for row in rows.values()) > _INSPECTED:
            return
        only = {path: (Candidate(inspecting.by_weights(row.actual.weights)),) for path, row in rows.items() if row.actual.weights}
        subject = self.sensitive(plan, only)
        if subject is not None:
            yield Inspected(tuple(inspecting.rounded_layer(site, rows[site.path].actual) for site in subject.sites))

    @property
    @abstractmethod
    def calibration(self) -> str:
        """The title of the calibration."""

    @abstractmethod
    def calibrate(self, plan: Plan) -> Generator[Event, None, Any]:
        """Statistics of the training split that rounding and grids need."""

    def kept(self, statistics: Any) -> dict[str, Any] | None:
        """``statistics`` as plain values and tensors, for a run that is stopped and goes on; None where gathering it again costs less."""
        return None

    def restored(self, plan: Plan, state: Mapping[str, Any]) -> Any | None:
        """What ``kept`` told; None where it does not fit the plan."""
        return None

    conversion: ClassVar[str] = "Converting to integer kernels"

    @abstractmethod
    def convert(self, plan: Plan, statistics: Any) -> Generator[Event, None, Quantized]:
        """Round the weights, and put the model on this machine's kernels."""

    @abstractmethod
    def trainable(self, plan: Plan, quantized: Quantized) -> bool:
        """Whether there is anything to train."""

    @abstractmethod
    def train(self, plan: Plan, quantized: Quantized, checkpoint: Path) -> Steps[Trained]:
        """QAT from ``quantized``."""

    conversion_of_trained: ClassVar[str] = conversion

    @abstractmethod
    def convert_trained(self, plan: Plan, quantized: Quantized, trained: Trained) -> Generator[Event, None, Quantized]:
        """What QAT from ``quantized`` gave, on this machine's kernels."""

    @abstractmethod
    def layer_results(self, plan: Plan, quantized: Quantized) -> list[dict[str, Any]]:
        """The report's ``layers``: asked for, done, on what, why, and the noise of each."""

    @abstractmethod
    def layer_table(self, rows: Sequence[Mapping[str, Any]]) -> Table: ...

    @abstractmethod
    def graph(self) -> dict[str, Any]:
        """The report's ``graph``."""

    def details(self, plan: Plan, statistics: Any, quantized: Quantized) -> dict[str, Any]:
        """Keys of the report that this lowering alone has."""
        return {}

    def close(self) -> None:  # noqa: B027
        """The run is finished: what this lowering kept to resume it, and what is large, may go."""

    def export_form(self, quantized: Quantized) -> Any:
        """What exports write of a quantized model: its executor, unless the lowering has another form of it."""
        return quantized.model

    @classmethod
    @abstractmethod
    def reopen(cls, directory: Path, subject: Subject | None) -> Reopened:
        """The model of a finished run's file; ``subject`` is the fp32 model, None where it could not be loaded. Raises EngineError for
        a file that is damaged, or that needs the fp32 model."""

    @classmethod
    def measured(cls, model: Any) -> Forward:
        """What computes the export form as it was measured, on the processor."""
        return forward_of(model)

    @classmethod
    def export_inputs(cls, task: Task, model: Any) -> Batch | None:
        """Training items for formats that calibrate or trace; None where none of the lowering's formats does."""
        return None

    @classmethod
    def fp32_forms(cls, subject: Subject, stop: StopToken) -> Mapping[str, nn.Module]:
        """The fp32 model in the forms of a run's baseline."""
        return {"torch fp32": subject.model}
