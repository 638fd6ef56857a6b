"""One layer under the microscope: its weights before and after rounding, its channels, and what it reads."""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from engine.errors import EngineError
from engine.events.cancellation import StopToken
from engine.events.event import Bins, Event, Inspected, RangeRow
from engine.events.progress import Ticker
from engine.events.rows import ChannelRow, RoundedLayer
from engine.lowering.graph.ranges import BINS, ends
from engine.lowering.probing import Site
from engine.lowering.sensitivity import Subject
from engine.models.anatomy import weight_of
from engine.numerics.histogram import Histogram
from engine.numerics.observers import observer
from engine.numerics.qparams import affine
from engine.numerics.sqnr import sqnr_db
from engine.planning.sensitivity import Candidate
from engine.recipe.spec import ActivationSpec, LayerSpec, WeightSpec
from engine.tasks.base import Task

ITEMS = 64
# A channel stands out whose largest weight, or value, is that many times the median channel's.
STANDS_OUT = 4.0
_BATCH = 8
_STRIP, _NAMED, _TICKS = 96, 8, 33
# Roundings that need nothing but the weights; what others would do to them is not known before calibration.
_BY_WEIGHTS = ("nearest", "mse", "hqq")


def by_weights(spec: WeightSpec) -> WeightSpec:
    """``spec`` with a rounding that needs the weights alone."""
    return spec if spec.method in _BY_WEIGHTS else replace(spec, method="nearest")


def inspect(subject: Subject, spec: LayerSpec, task: Task, items: int, stop: StopToken) -> Generator[Event, None, None]:
    """The one layer of ``subject`` with weights as ``spec`` has them, and what it reads on the first ``items`` calibration items. Yields
    Progress and ``Inspected``. Raises Cancelled on stop, EngineError where weights or values are not finite."""
    (site,) = subject.sites
    row = rounded_layer(site, spec)
    values = yield from _values(subject, site, spec.activations, task, min(items, ITEMS), stop)
    yield Inspected((replace(row, values=values),))


@torch.no_grad()
def rounded_layer(site: Site, spec: LayerSpec) -> RoundedLayer:
    """The weights of one layer before and after rounding by ``spec``, channel by channel (the first dimension of the weight)."""
    assert spec.weights is not None
    weights = by_weights(spec.weights)
    error = site.error(Candidate(weights)).float().cpu()
    held = weight_of(site.module) if site.transposed else site.weight
    before = held.detach().float().cpu().reshape(error.shape)
    after = before + error
    own, rounded = (_parts(x, after, weights) for x in (before, after))
    low, high = min(-1.0, own.min().item()), max(1.0, own.max().item())
    ranges = before.abs().amax(1)
    order = ranges.argsort(descending=True)
    shown = order[torch.linspace(0, len(order) - 1, min(_STRIP, len(order))).long()]
    lows, highs = before.amin(1), before.amax(1)
    standing = order[ranges[order] > STANDS_OUT * ranges.median().clamp_min(1e-30)]
    noise = error.double().square().sum().item()
    return RoundedLayer(
        site.path, replace(spec, weights=weights), len(before), _bins(own, low, high), _bins(rounded, low, high), _ticks(rounded),
        tuple(lows[shown].tolist()), tuple(highs[shown].tolist()),
        tuple(ChannelRow(int(i), lows[i].item(), highs[i].item()) for i in standing[:_NAMED]), len(standing), ranges.median().item(),
        sqnr_db(before.double().square().sum().item(), noise), (after == 0).float().mean().item(),
        (own.abs() > 1 + 1e-4).float().mean().item(),
    )  # fmt: skip


def _parts(x: Tensor, rounded: Tensor, spec: WeightSpec) -> Tensor:
    """Values as parts of the largest magnitude of the grid that they are rounded on: that of their tensor, channel, or group."""
    if spec.granularity == "per-tensor":
        return x / rounded.abs().amax().clamp_min(1e-30)
    size = spec.group_size if spec.granularity == "per-group" else x.shape[1]
    if short := -x.shape[1] % size:
        x, rounded = (nn.functional.pad(one, (0, short)) for one in (x, rounded))
    x, rounded = (one.reshape(len(one), -1, size) for one in (x, rounded))
    return (x / rounded.abs().amax(-1, keepdim=True).clamp_min(1e-30)).flatten(1)[:, : x.shape[1] * size - short]


def _bins(x: Tensor, low: float, high: float) -> Bins:
    counts = torch.histc(x, BINS * 2, low, high).tolist()
    return Bins(low, (high - low) / (2 * BINS), tuple(map(int, counts)))


def _ticks(rounded: Tensor) -> tuple[float, ...]:
    """The levels that rounded weights take, where grids share them and they are few enough to be told apart; of 8 bits none."""
    sample = rounded.flatten()[:200_000]
    levels = torch.unique((sample * 2e3).round())
    return tuple((levels / 2e3).tolist()) if len(levels) <= _TICKS else ()


def _values(
    subject: Subject, site: Site, spec: ActivationSpec | None, task: Task, items: int, stop: StopToken
) -> Generator[Event, None, RangeRow | None]:
    """The histogram of what the layer reads with the ends of its grid; None where it reads no floats."""
    seen = _Values(spec or ActivationSpec(8, observer="minmax"))
    ticker = Ticker("inspect", items, "items", clock=stop.clock)
    hook = site.module.register_forward_pre_hook(partial(_read, seen))
    training = [module for module in subject.model.modules() if module.training]
    subject.model.eval()
    try:
        for batch in task.calibration_batches(batch=_BATCH, limit=items, device=subject.device):
            stop.check()
            with torch.inference_mode():
                subject.forward(batch.laid_out())
            yield from ticker.advance(batch.count)
    finally:
        hook.remove()
        for module in training:
            module.training = True
    return seen.row(site.path, spec)


class _Values:
    """What a layer reads: its histogram, its observer, and the largest magnitude of each channel."""

    def __init__(self, spec: ActivationSpec) -> None:
        self.histogram, self.observer, self.largest = Histogram(), observer(replace(spec, dynamic=False)), torch.empty(0)

    def update(self, x: Tensor, channels: int) -> None:
        """``x`` has its channels in the dimension ``channels``."""
        self.histogram.update(x)
        self.observer.update(x)
        largest = x.abs().movedim(channels, 0).flatten(1).amax(1).float().cpu()
        self.largest = torch.maximum(self.largest, largest) if self.largest.shape == largest.shape else largest

    def row(self, path: str, spec: ActivationSpec | None) -> RangeRow | None:
        low, high = self.histogram.low, self.histogram.high
        if not (math.isfinite(low) and math.isfinite(high)):
            if math.isnan(low):
                raise EngineError(f"{path} reads NaN or infinity on the calibration items: what it reads has no histogram")
            return None
        clip = (low, high)
        if spec is not None and not spec.dynamic:
            clip = ends(affine(*self.observer.range(spec.bits), spec.bits, spec.symmetric))
        standing = int((self.largest > STANDS_OUT * self.largest.median().clamp_min(1e-30)).sum())
        bins = Bins(low, (high - low) / BINS or 1.0, self.histogram.over(low, high, BINS))
        return RangeRow(path, (path,), low, high, *clip, bins, None, standing, len(self.largest))


def _read(seen: _Values, module: nn.Module, args: Sequence[Any]) -> None:
    x = args[0] if args else None
    if isinstance(x, Tensor) and x.is_floating_point() and x.numel():
        # Of a convolution the second dimension is its channels, of a matrix the last.
        convolves = "Conv" in type(module).__name__ and type(module).__name__ != "Conv1D"
        seen.update(x.detach(), 1 if convolves and x.dim() > 2 else -1)
