"""What a run says while it works: frozen, tensor-free values that travel to any front end and into ``events.jsonl``."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from engine.possible import is_slower
from engine.spec import LayerSpec


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
    """A decision between stages. The consumer answers with ``generator.send``: a bool, one of ``engine.decisions``, or None
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
    metric: Literal["accuracy", "perplexity"] | None = None


@dataclass(frozen=True)
class Measured(Event):
    """The figures of one form of the model: ``which`` is ``baseline``, ``ptq`` or ``qat``."""

    which: Literal["baseline", "ptq", "qat"]
    figures: dict[str, Any] = field(default_factory=dict)


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
    """What the run is: its folder, the recipe (as in its YAML) and the report's ``environment``. First of a run's events,
    and again when a decision changes the recipe."""

    directory: str
    recipe: dict[str, Any]
    environment: dict[str, Any]


@dataclass(frozen=True)
class NodeRow:
    """One node of a graph as texts; ``shape`` has N for the batch; ``time_share`` is its part (0..1) of the fp32 time."""

    opcode: str
    name: str
    target: str
    args: str
    kwargs: str
    shape: str
    params: int
    time_share: float | None = None


@dataclass(frozen=True)
class Graph(Detail):
    """``which`` is ``traced`` or ``fused``."""

    which: Literal["traced", "fused"]
    nodes: tuple[NodeRow, ...]


@dataclass(frozen=True)
class PairRow:
    """A layer and the normalization that reads it, by module path and by node name. ``reason`` says why it cannot be
    folded, None when it can; ``max_abs_delta`` is set once it was folded."""

    conv: str
    bn: str
    conv_node: str
    bn_node: str
    reason: str | None = None
    max_abs_delta: float | None = None


@dataclass(frozen=True)
class Pairs(Detail):
    """``change`` is the largest change of the model's output by the fold, ``ms_before`` and ``ms_after`` the p50 of both
    graphs in milliseconds at batch 1; None until measured."""

    pairs: tuple[PairRow, ...]
    change: float | None = None
    ms_before: float | None = None
    ms_after: float | None = None


@dataclass(frozen=True)
class LayerRow:
    """One module of the plan. ``actual`` is what this machine can do of ``requested``; ``proposed`` is what the proposal
    alone would ask, ``proposed_why`` its sentence. ``editable`` layers are those that can be quantized; otherwise
    ``obstacle`` may say why not. ``kernel`` is what the layer would run on; ``weight_shape`` is (out, in, ...). ``int8_ms`` and
    ``fp32_ms`` are milliseconds of the layer alone for one image on this machine, None where that was not measured. ``decoder``
    says where a matrix of a decoder is, and is empty for other networks; ``tied`` names the layer whose matrix it shares."""

    path: str
    kind: str
    node: str
    params: int
    weight_shape: tuple[int, ...]
    requested: LayerSpec
    actual: LayerSpec
    proposed: LayerSpec
    rule: str
    why: str
    proposed_why: str
    time_share: float
    kernel: str
    editable: bool
    obstacle: str | None = None
    int8_ms: float | None = None
    fp32_ms: float | None = None
    decoder: Literal["", "block", "outside"] = ""
    tied: str | None = None

    @property
    def slower(self) -> bool:
        """Whether the layer takes longer on integers than in fp32 here, alone."""
        return self.int8_ms is not None and self.fp32_ms is not None and is_slower(self.int8_ms, self.fp32_ms)


@dataclass(frozen=True)
class Planned(Detail):
    """``activation_bits`` is the widest that this machine multiplies without saturating; ``fp32_bytes`` the size of the
    folded fp32 model as a file."""

    layers: tuple[LayerRow, ...]
    preset: str
    activation_bits: int
    fp32_bytes: int


@dataclass(frozen=True)
class Bins:
    """A histogram: ``counts[i]`` values lie in ``start + i * width`` to ``start + (i + 1) * width``."""

    start: float
    width: float
    counts: tuple[int, ...]


@dataclass(frozen=True)
class RangeRow:
    """Values that share one grid: seen extremes, the ends of the grid that the observer would give now, and the paths of the
    layers that read them. ``bins`` counts all values or an even sample of them. ``settled`` is the number of images after
    which the range moved by less than 1 %, None while it moves. ``outliers`` counts channels whose largest value is many times
    that of the median channel, of ``channels``; None where channels are not told apart."""

    name: str
    layers: tuple[str, ...]
    low: float
    high: float
    clip_low: float
    clip_high: float
    bins: Bins
    settled: int | None = None
    outliers: int | None = None
    channels: int | None = None


@dataclass(frozen=True)
class Ranges(Detail):
    """Activation ranges after ``seen`` of ``total`` calibration images, for a person who watches; the last of a calibration is
    ``final`` and has the grids that are used. A value that is not finite has no row."""

    seen: int
    total: int
    rows: tuple[RangeRow, ...]
    final: bool = False


@dataclass(frozen=True)
class WeightRow:
    """One layer's weights as they are quantized (normalization folded in). ``clip_low`` and ``clip_high`` are the ends of
    the widest grid; ``narrowest`` and ``widest`` the least and the greatest absolute range of a channel."""

    path: str
    low: float
    high: float
    clip_low: float
    clip_high: float
    narrowest: float
    widest: float
    channels: int
    bins: Bins


@dataclass(frozen=True)
class Weights(Detail):
    rows: tuple[WeightRow, ...]


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
class Judgement(Detail):
    """The report's ``verdict`` as it would be if the run ended with this form of the model."""

    which: Literal["ptq", "qat"]
    verdict: dict[str, Any]


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
