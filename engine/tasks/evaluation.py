"""Measuring: one pass for accuracy and error, layer by layer for the noise, in turns for the time."""

from __future__ import annotations

import copy
import math
import statistics
import time
from collections.abc import Callable, Generator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from engine.data.images.base import Data, SplitName
from engine.errors import EngineError
from engine.events.cancellation import StopToken
from engine.events.event import Event
from engine.events.progress import Ticker
from engine.lowering.graph.kinds import in_place
from engine.lowering.graph.layout import Layout, Unit
from engine.lowering.graph.memory import channels_last
from engine.lowering.graph.runtime import QuantizedModel
from engine.machine.repeats import passes
from engine.numerics.qparams import QParams, dequantize
from engine.numerics.sqnr import sqnr_db

Forward = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Quality:
    """Top-1 ``value`` (0..1) with the half-width of its 95 % interval, and the outputs' distance from the reference:
    ``mse`` over all outputs, ``sqnr_db``, and the part of equal top-1 answers."""

    value: float
    interval: float
    mse: float
    sqnr_db: float
    agreement: float
    images: int

    def error(self) -> dict[str, float]:
        return {"mse": self.mse, "sqnr_db": self.sqnr_db, "agreement": self.agreement}


def compare(
    stage: str, models: Mapping[str, Forward], reference: Forward, data: Data, split: SplitName, batch: int, stop: StopToken,
    limit: int | None = None, device: str = "cpu",
) -> Generator[Event, None, dict[str, Quality]]:  # fmt: skip
    """Judge each of ``models`` and the ``reference`` (as ``"reference"``) on a split, in one pass over it."""
    total = data.count(split, limit)
    ticker = Ticker(stage, total, "img", clock=stop.clock)
    sums = {name: [0, 0.0, 0] for name in ("reference", *models)}
    signal, outputs = 0.0, 0
    with torch.inference_mode():
        for x, y in data.batches(split, batch, limit=limit, device=device):
            stop.check()
            x = x.contiguous(memory_format=torch.channels_last)
            expected = reference(x)
            if not torch.isfinite(expected).all():
                raise EngineError("the fp32 model gives NaN or infinity on the data: check the weights, data.mean and data.std")
            signal += expected.double().square().sum().item()
            outputs += expected.numel()
            for name, run in (("reference", None), *models.items()):
                got = expected if run is None else run(x)
                sums[name][0] += int((got.argmax(1) == y).sum())
                sums[name][1] += (got - expected).double().square().sum().item()
                sums[name][2] += int((got.argmax(1) == expected.argmax(1)).sum())
            yield from ticker.advance(len(x))
    return {
        name: Quality(right / total, interval(right, total), noise / outputs, sqnr_db(signal, noise), same / total, total)
        for name, (right, noise, same) in sums.items()
    }


def interval(right: float, total: int) -> float:
    """Half the width of the Wilson interval at 95 % of a part (0..1) ``right`` of ``total``."""
    z, p = 1.96, right / total
    return z / (1 + z * z / total) * math.sqrt(p * (1 - p) / total + z * z / (4 * total * total))


@dataclass(frozen=True)
class LayerNoise:
    """SQNR in dB at a unit's output: ``sqnr_db`` against the fp32 model, with the errors of all layers before it;
    ``own_sqnr_db`` with this layer's errors alone, against its float form on the inputs that it got."""

    sqnr_db: float
    own_sqnr_db: float


def layer_sqnr(
    gm: fx.GraphModule, rounded: fx.GraphModule, layout: Layout, grids: Mapping[str, QParams], model: QuantizedModel, data: Data,
    stop: StopToken, images: int = 128,
) -> dict[str, LayerNoise]:  # fmt: skip
    """The noise of each unit on validation images, by layer node. ``gm`` is the fp32 model, ``rounded`` the float graph that
    ``model`` is the rounding of: ``gm`` itself, or as it was trained."""
    sums = {unit.layer: [0.0] * 4 for unit in layout.units}
    class_of = layout.class_of()
    units = _Units(rounded)
    with torch.inference_mode():
        for x, _ in data.batches("validation", 64, limit=images):
            stop.check()
            x = x.contiguous(memory_format=torch.channels_last)
            exact = _Values(gm, {unit.output for unit in layout.units})
            exact.run(x)
            got = model.watch(x)

            def held(name: str, got: Mapping[str, Tensor] = got) -> Tensor:
                integers = got.get(f"{name}:q")
                return got[name] if integers is None else dequantize(integers, grids[class_of[name].name])

            for unit in layout.units:
                stop.check()
                wanted, seen = exact.values.pop(unit.output), held(unit.output)
                alone = units.run_unit(unit, {name: held(name) for name in (unit.input, unit.other) if name})
                for i, part in enumerate((wanted, wanted - seen, alone, alone - seen)):
                    sums[unit.layer][i] += _power(part)
    return {name: LayerNoise(sqnr_db(*s[:2]), sqnr_db(*s[2:])) for name, s in sums.items()}


def _power(x: Tensor) -> float:
    """The sum of squares, added up in doubles."""
    return float(torch.linalg.vector_norm(x, dtype=torch.float64).item() ** 2)


class _Units(fx.Interpreter):
    """Runs a unit's nodes alone."""

    def __init__(self, gm: fx.GraphModule) -> None:
        super().__init__(gm)
        self._nodes = {node.name: node for node in gm.graph.nodes}

    def run_unit(self, unit: Unit, inputs: Mapping[str, Tensor]) -> Tensor:
        """The unit's output in float; ``inputs`` by node name."""
        self.env = {self._nodes[name]: value for name, value in inputs.items()}
        for name in unit.nodes():
            self.env[self._nodes[name]] = self.run_node(self._nodes[name])
        result: Tensor = self.env[self._nodes[unit.output]]
        self.env = {}
        return result


class _Values(fx.Interpreter):
    def __init__(self, gm: fx.GraphModule, wanted: set[str]) -> None:
        super().__init__(gm)
        self._wanted = wanted
        self.values: dict[str, Tensor] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n.name in self._wanted:
            changed = any(in_place(user) and user.all_input_nodes[0] is n for user in n.users)
            self.values[n.name] = value.clone() if changed else value
        return value


class _Timed(fx.Interpreter):
    def __init__(self, gm: fx.GraphModule) -> None:
        super().__init__(gm)
        self.seconds: dict[str, list[float]] = {}
        self.sizes: dict[str, tuple[int, ...]] = {}

    def run_node(self, n: fx.Node) -> Any:
        start = time.perf_counter()
        value = super().run_node(n)
        self.seconds.setdefault(n.name, []).append(time.perf_counter() - start)
        if isinstance(value, Tensor):
            self.sizes[n.name] = tuple(value.shape)
        return value


@dataclass(frozen=True)
class Profile:
    """By node name: its part (0..1) of the fp32 time, and the size of its value where that is a tensor."""

    shares: dict[str, float]
    sizes: dict[str, tuple[int, ...]]


def profile(gm: fx.GraphModule, x: Tensor) -> Profile:
    """``gm`` on ``x``, node by node; times are medians of a few passes, which one that was disturbed does not move."""
    timed = _Timed(gm)
    with torch.inference_mode():
        for _ in passes():
            timed.run(x.contiguous(memory_format=torch.channels_last))
    medians = {name: statistics.median_low(times) for name, times in timed.seconds.items()}
    return Profile({name: value / sum(medians.values()) for name, value in medians.items()}, timed.sizes)


@dataclass(frozen=True)
class Latency:
    """Milliseconds for one call on ``batch`` images."""

    p50: float
    p95: float
    batch: int

    def to_dict(self) -> dict[str, float]:
        return asdict(self)


def latencies(models: Mapping[str, Forward], x: Tensor, stop: StopToken, seconds: float = 1.5) -> dict[str, Latency]:
    """Time the models in turns, so that a noisy neighbour disturbs all alike. ``x`` is the batch (N, C, H, W)."""
    x = x.contiguous(memory_format=torch.channels_last)
    spent: dict[str, list[float]] = {name: [] for name in models}
    with torch.inference_mode():
        for run in models.values():
            for _ in range(5):
                run(x)
        end = stop.clock() + seconds
        while stop.clock() < end or min(map(len, spent.values())) < 10:
            stop.check()
            for name, run in models.items():
                start = time.perf_counter()
                run(x)
                spent[name].append((time.perf_counter() - start) * 1e3)
    return {name: Latency(*_percentiles(times), len(x)) for name, times in spent.items()}


def _percentiles(times: list[float]) -> tuple[float, float]:
    ordered = sorted(times)
    return round(ordered[len(ordered) // 2], 4), round(ordered[min(int(0.95 * len(ordered)), len(ordered) - 1)], 4)


def fp32_forms(gm: fx.GraphModule) -> dict[str, nn.Module]:
    """The fused fp32 graph in both memory formats: which is faster depends on the machine and the batch."""
    last = channels_last(copy.deepcopy(gm))
    return {"torch fp32, channels-last": last, "torch fp32, contiguous": _Contiguous(copy.deepcopy(gm))}


class _Contiguous(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Any:
        return self.model(x.contiguous())
