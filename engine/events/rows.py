"""The rows that events bring to a screen: nodes, layers, ranges and weights, as frozen values without tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from engine.events.speed import is_slower
from engine.recipe.capabilities import CONVOLUTION, LINEAR, NOTHING, UNKNOWN, Capabilities, of_decoder
from engine.recipe.spec import LayerSpec


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
class LayerSensitivity:
    """What one candidate costs where it alone is quantized and all else is fp32.

    ``path`` is the layer's, ``candidate`` the weights (``w4``: 4 bits) or what the layer reads (``a4``). ``noise_db`` is the SQNR of
    the layer's output, ``loss_increase`` the second-order estimate of what the loss rises by (``Sensitivities.basis``), and
    ``size_bytes`` what the weights then take as stored. ``drop`` is what the metric lost on validation, None where that was not
    measured."""

    path: str
    candidate: str
    noise_db: float
    loss_increase: float
    size_bytes: int
    drop: float | None = None


@dataclass(frozen=True)
class LayerRow:
    """One module of the plan. ``actual`` is what this machine can do of ``requested``; ``proposed`` is what the proposal
    alone would ask, ``proposed_why`` its sentence. ``editable`` layers are those that can be quantized; otherwise
    ``obstacle`` may say why not. ``kernel`` is what the layer would run on; ``weight_shape`` is (out, in, ...). ``int8_ms`` and
    ``fp32_ms`` are milliseconds of the layer alone for one image on this machine, None where that was not measured.
    They are not ``steady`` where the machine had other work meanwhile. ``capabilities`` are what can be had of the layer; ``tied`` names
    the layer whose matrix it shares."""

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
    capabilities: Capabilities = UNKNOWN
    tied: str | None = None
    steady: bool = True

    @property
    def slower(self) -> bool:
        """Whether the layer takes longer on integers than in fp32 here, alone: of unsteady times nothing is said."""
        return self.steady and self.int8_ms is not None and self.fp32_ms is not None and is_slower(self.int8_ms, self.fp32_ms)

    @staticmethod
    def renamed(fields: Mapping[str, Any]) -> dict[str, Any]:
        """``fields`` as earlier versions wrote them, with capabilities in the place of ``decoder``, which said where a matrix of a
        decoder is (``block``, ``outside``) and was empty for other networks."""
        if "capabilities" in fields:
            return dict(fields)
        where, kind = fields.get("decoder"), str(fields.get("kind"))
        found = NOTHING
        if where in ("block", "outside"):
            found = of_decoder(kind, where == "block")
        elif fields.get("editable") is True:
            found = LINEAR if kind == "Linear" else CONVOLUTION
        return {**fields, "capabilities": asdict(found)}


@dataclass(frozen=True)
class Bins:
    """A histogram: ``counts[i]`` values lie in ``start + i * width`` to ``start + (i + 1) * width``."""

    start: float
    width: float
    counts: tuple[int, ...]


@dataclass(frozen=True)
class RangeRow:
    """Values that share one grid: seen extremes, the ends of the grid that the observer would give now, and the paths of the
    layers that read them. ``bins`` counts all values or an even sample of them. ``settled`` is the number of images, or windows of
    text, after which the range moved by less than 1 %, None while it moves. ``outliers`` counts channels whose largest value is
    many times that of the median channel, of ``channels``; None where channels are not told apart."""

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
class ChannelRow:
    """One channel's least and greatest weight; ``index`` counts from 0."""

    index: int
    low: float
    high: float


@dataclass(frozen=True)
class RoundedLayer:
    """One layer's weights before and after rounding as ``spec`` says (to nearest where its method needs more than the weights).

    ``before`` and ``after`` count them as parts of the largest rounded magnitude in what shares a scale with them (their group, channel,
    or tensor), so that all grids lie upon one another; ``ticks`` are its levels, empty where they are too many to be told apart. ``lows``
    and ``highs`` are the ends of ``channels`` in the order of their largest magnitude, or of an even sample of them; ``outliers`` the
    first of the ``standing_out`` channels that have several times ``median``, the median channel's. ``zeros`` and ``clipped`` are parts of
    the weights: rounded to 0, and beyond the grid's end. ``values`` is what the layer reads, None where that was not looked at."""

    path: str
    spec: LayerSpec
    channels: int
    before: Bins
    after: Bins
    ticks: tuple[float, ...]
    lows: tuple[float, ...]
    highs: tuple[float, ...]
    outliers: tuple[ChannelRow, ...]
    standing_out: int
    median: float
    sqnr_db: float
    zeros: float
    clipped: float
    values: RangeRow | None = None


@dataclass(frozen=True)
class ChangeRow:
    """An item of the test split that a quantized model answers otherwise: its ``place`` there, what is right, what fp32 and the
    quantized model say, how good both are (greater is better, None where nothing is right), and its file where it has one."""

    place: int
    label: str
    fp32: str
    quantized: str
    before: float | None = None
    after: float | None = None
    file: str = ""

    @property
    def lost(self) -> float:
        """By how much the quantized model is worse."""
        return 0.0 if self.before is None or self.after is None else self.before - self.after
