"""What the screens show, as one frozen value; ``qtui.reducer`` moves it on. Nothing but data, so that the first frame is
soon there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from engine.tasks.metrics import Metric, MetricValue, measures

if TYPE_CHECKING:
    from engine.events import event as ev
    from engine.runs.rundir import RunSummary
    from qtui import messages as ms
    from qtui.draft import Draft
    from qtui.machine_line import Look

Stage = str
"""The id of a stage in ``qtui.stages``."""
Status = Literal["next", "running", "waiting", "done", "failed", "stopped", "skipped"]


@dataclass(frozen=True)
class LogLine:
    """``level`` is info, warning, error, or stage for a stage's title; ``at`` is seconds since the job began."""

    text: str
    level: str = "info"
    at: float = 0.0


@dataclass(frozen=True)
class Job:
    """What the engine's thread does. ``ending`` is training that was told to end with its
    best epoch, the run going on. ``asking`` is the question it waits at, ``default`` that question's default."""

    kind: ms.JobKind
    title: str
    model: str = ""
    data: str = ""
    stopping: bool = False
    ending: bool = False
    paused: bool = False
    asking: str | None = None
    default: bool = True


@dataclass(frozen=True)
class Training:
    """``steps`` are (step, mean loss) in order, thinned to ``CHART_POINTS``; ``epochs`` are those that finished."""

    steps: tuple[tuple[int, float], ...] = ()
    epochs: tuple[ev.EpochFinished, ...] = ()
    now: ev.Step | None = None

    @property
    def best(self) -> ev.EpochFinished | None:
        return next((epoch for epoch in reversed(self.epochs) if epoch.best), None)


@dataclass(frozen=True)
class Run:
    """One run as far as it has come. ``measured``, ``layers`` and ``judged`` are by form: baseline, ptq, qat. ``doing`` is the title
    of the engine's own stage that runs, ``phase`` its name, ``part`` which of its
    counts from nothing ``progress`` is. ``samples`` are what a language model's forms write. ``measures`` are the task's metrics, the
    one that decides first, and ``values`` all of them by form; ``item`` is what is counted, as one and as many; ``changed`` are
    the items whose answer changed most."""

    directory: str = ""
    model: str = ""
    data: str = ""
    recipe: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, Any] = field(default_factory=dict)
    at: Stage = "model"
    stages: Mapping[Stage, Status] = field(default_factory=dict)
    doing: str = ""
    phase: str = ""
    progress: ev.Progress | None = None
    part: int = 1
    traced: tuple[ev.NodeRow, ...] = ()
    fused: tuple[ev.NodeRow, ...] = ()
    pairs: ev.Pairs | None = None
    plan: ev.Planned | None = None
    draft: Draft | None = None
    weights: Mapping[str, ev.WeightRow] = field(default_factory=dict)
    ranges: ev.Ranges | None = None
    sensitivity: ev.Sensitivities | None = None
    inspected: Mapping[str, ev.RoundedLayer] = field(default_factory=dict)
    machine: tuple[Look, ...] = ()
    measured: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    layers: Mapping[str, tuple[Mapping[str, Any], ...]] = field(default_factory=dict)
    judged: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    samples: tuple[ev.Samples, ...] = ()
    changed: ev.Changes | None = None
    task: str = ""
    measures: tuple[Mapping[str, Any], ...] = ()
    values: Mapping[str, Mapping[str, MetricValue]] = field(default_factory=dict)
    item: tuple[str, str] = ("image", "images")
    training: Training = field(default_factory=Training)
    warnings: tuple[str, ...] = ()
    finished: ev.Finished | None = None
    stopped: bool = False
    report: Mapping[str, Any] | None = None

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """The task's metrics, the one that decides first."""
        return measures(self.measures, str((self.measured.get("baseline") or {}).get("metric") or "accuracy"))

    @property
    def metric(self) -> Metric:
        """The metric that decides."""
        return self.metrics[0]

    @property
    def reads_text(self) -> bool:
        """Whether tokens are measured, one after the other, and not items."""
        return self.metric.name == "perplexity"

    def status(self, stage: Stage) -> Status:
        return self.stages.get(stage, "next")


@dataclass(frozen=True)
class State:
    """``machine`` is None until PyTorch is imported; ``listed`` is whether ``runs`` have been looked for.
    ``baseline`` is the training of a baseline, apart from any run."""

    machine: Mapping[str, Any] | None = None
    job: Job | None = None
    run: Run = Run()
    baseline: Training = field(default_factory=Training)
    baseline_progress: ev.Progress | None = None
    trained: str = ""
    runs: tuple[RunSummary, ...] = ()
    listed: bool = False
    log: tuple[LogLine, ...] = ()
    problem: ms.Problem | None = None
    _began: float = 0.0

    @property
    def busy(self) -> bool:
        """Whether work would be lost or have to be saved by leaving now."""
        return self.job is not None and self.job.kind in ("run", "resume", "train", "export")

    @property
    def work(self) -> str:
        """What is at work, as a sentence begins: the stage of a run, or what else was begun."""
        if self.job is None:
            return ""
        if self.job.asking:
            return "A run waits for an answer"
        words = self.run.doing if self.job.kind in ("run", "resume") and self.run.doing else self.job.title
        return f"{words[:1].upper()}{words[1:]}"

    @property
    def exporting(self) -> bool:
        """Whether a finished run is being exported."""
        return self.job is not None and self.job.kind == "export"

    @property
    def asking(self) -> str | None:
        return self.job.asking if self.job else None
