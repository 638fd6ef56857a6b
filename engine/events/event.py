"""What a run says while it works: frozen, tensor-free values that travel to any front end and into ``events.jsonl``."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

# Whoever reads events reads their rows: both are had from here.
from engine.events.rows import Bins as Bins
from engine.events.rows import ChangeRow as ChangeRow
from engine.events.rows import ChannelRow as ChannelRow
from engine.events.rows import LayerRow as LayerRow
from engine.events.rows import LayerSensitivity as LayerSensitivity
from engine.events.rows import NodeRow as NodeRow
from engine.events.rows import PairRow as PairRow
from engine.events.rows import RangeRow as RangeRow
from engine.events.rows import RoundedLayer as RoundedLayer
from engine.events.rows import WeightRow as WeightRow
from engine.machine.usage import Usage as Usage


@dataclass(frozen=True)
class Event:
    """Base of all events. ``to_dict`` gives the JSON form with the class name under ``event``."""

    def to_dict(self) -> dict[str, Any]:
        return {"event": type(self).__name__, **asdict(self)}


@dataclass(frozen=True)
class StageStarted(Event):
    stage: str
    title: str


@dataclass(frozen=True)
class StageFinished(Event):
    stage: str
    seconds: float


@dataclass(frozen=True)
class Progress(Event):
    """``rate`` is in units per second, ``eta`` in seconds; both are None until they can be told."""

    stage: str
    done: int
    total: int
    unit: str
    rate: float | None = None
    eta: float | None = None


@dataclass(frozen=True)
class Notice(Event):
    text: str
    level: Literal["info", "warning"] = "info"


@dataclass(frozen=True)
class Table(Event):
    """Rows for a person to read. ``key`` names the table for a program: ``graph-before``, ``plan``, ``layers`` …"""

    key: str
    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Ask(Event):
    """A decision between stages. The consumer answers with ``generator.send``: a bool, one of ``engine.recipe.decisions``, or None
    for the default."""

    key: Literal["trace", "analyze", "optimize", "quantize", "qat"]
    question: str
    default: bool = True


@dataclass(frozen=True)
class EpochFinished(Event):
    """``loss`` is the mean training loss of the epoch, ``value`` the ``metric`` on the validation split: the run's own where it is
    None."""

    epoch: int
    epochs: int
    loss: float
    value: float
    lr: float
    best: bool
    stage: str = "train"
    metric: str | None = None


@dataclass(frozen=True)
class Measured(Event):
    """The figures of one form of the model: ``which`` is ``baseline``, ``ptq`` or ``qat``. ``metrics`` are all of the task's by name,
    as the report's ``metrics`` has them."""

    which: Literal["baseline", "ptq", "qat"]
    figures: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Finished(Event):
    directory: str
    met: bool
    text: str


@dataclass(frozen=True)
class Stopped(Event):
    directory: str
    stage: str


@dataclass(frozen=True)
class Failed(Event):
    text: str
    traceback: str | None = None


@dataclass(frozen=True)
class Detail(Event):
    """Base of what a screen draws and a front end of plain lines passes over."""


@dataclass(frozen=True)
class Setting(Detail):
    """What the run is: its folder, the recipe (as in its YAML), the report's ``environment``, ``task``, ``measures`` and ``items``.
    First of a run's events, and again when a decision changes the recipe."""

    directory: str
    recipe: dict[str, Any]
    environment: dict[str, Any]
    task: str = ""
    measures: tuple[dict[str, Any], ...] = ()
    items: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Graph(Detail):
    """``which`` is ``traced`` or ``fused``."""

    which: Literal["traced", "fused"]
    nodes: tuple[NodeRow, ...]


@dataclass(frozen=True)
class Pairs(Detail):
    """``change`` is the largest change of the model's output by the fold, ``ms_before`` and ``ms_after`` the p50 of both
    graphs in milliseconds at batch 1; None until measured."""

    pairs: tuple[PairRow, ...]
    change: float | None = None
    ms_before: float | None = None
    ms_after: float | None = None


@dataclass(frozen=True)
class Planned(Detail):
    """``activation_bits`` is the widest that this machine multiplies without saturating; ``fp32_bytes`` the size of the
    folded fp32 model as a file."""

    layers: tuple[LayerRow, ...]
    preset: str
    activation_bits: int
    fp32_bytes: int


@dataclass(frozen=True)
class Needs(Detail):
    """What a run by its plan takes: bytes of memory at most and of disk, those that are free (None where that is not known), and about
    how many seconds (None where no part of it was timed). ``text`` says it to a person; ``short`` is why it cannot end well, or empty."""

    memory_bytes: int
    disk_bytes: int
    text: str
    memory_free: int | None = None
    disk_free: int | None = None
    seconds: float | None = None
    short: str = ""


@dataclass(frozen=True)
class Sensitivities(Detail):
    """What each candidate of each layer costs alone, in the model's order. ``basis`` is the loss that was estimated: ``kl`` (nats by
    which the answers move from fp32's), ``loss`` (the task's own), ``mse`` (of the outputs, as a part of their power), or ``noise``
    (of the layer's own output, as a part of its power: where no gradient comes through); ``items`` is how many calibration items it
    was estimated on, in ``seconds``. ``measured`` counts the rows that have a ``drop``; the event comes
    again as these are added."""

    layers: tuple[LayerSensitivity, ...]
    basis: Literal["kl", "loss", "mse", "noise"]
    items: int
    seconds: float
    measured: int = 0


@dataclass(frozen=True)
class Ranges(Detail):
    """Activation ranges after ``seen`` of ``total`` calibration images, for a person who watches; the last of a calibration is
    ``final`` and has the grids that are used. A value that is not finite has no row."""

    seen: int
    total: int
    rows: tuple[RangeRow, ...]
    final: bool = False


@dataclass(frozen=True)
class Weights(Detail):
    rows: tuple[WeightRow, ...]


@dataclass(frozen=True)
class Inspected(Detail):
    """Layers under the microscope; one that comes again takes the place of the earlier one."""

    rows: tuple[RoundedLayer, ...]


@dataclass(frozen=True)
class Layers(Detail):
    """The report's ``layers`` for one form of the model, each with ``own_sqnr_db``: the noise of that layer alone, given the
    input that it gets."""

    which: Literal["ptq", "qat"]
    rows: tuple[dict[str, Any], ...]


@dataclass(frozen=True)
class Samples(Detail):
    """What forms of a language model say after the same words: ``prompt``, then the text of each form by its name."""

    prompt: str
    texts: dict[str, str]


@dataclass(frozen=True)
class Changes(Detail):
    """The items whose answer changed most, the report's ``changed``: of ``items`` on the test split ``changed`` are answered otherwise,
    ``worse`` and ``better`` by their score. ``rows`` are the first of them by what was lost."""

    which: Literal["ptq", "qat"]
    items: int
    changed: int
    worse: int
    better: int
    rows: tuple[ChangeRow, ...] = ()


@dataclass(frozen=True)
class Judgement(Detail):
    """The report's ``verdict`` as it would be if the run ended with this form of the model."""

    which: Literal["ptq", "qat"]
    verdict: dict[str, Any]


@dataclass(frozen=True)
class MachineUse(Detail):
    """What the run's processes take of their machines, every few seconds while it works: a row for each rank, ``seconds`` after the
    run began."""

    seconds: float
    ranks: tuple[Usage, ...]


@dataclass(frozen=True)
class Step(Detail):
    """Training so far within an epoch: ``loss`` is the mean since the last of these events, ``done`` and ``total`` count the
    steps of the whole training."""

    stage: str
    epoch: int
    epochs: int
    done: int
    total: int
    loss: float | None
    lr: float
