"""calibrate: one pass over training images; only ranges and histograms are kept."""

from __future__ import annotations

import copy
from collections.abc import Generator, Mapping

import torch
from torch import fx

from engine.cancel import StopToken
from engine.data.base import Data
from engine.errors import EngineError
from engine.events import Event
from engine.quant.layout import Layout
from engine.quant.numerics import QParams
from engine.quant.observe import Observed
from engine.ticker import Ticker


def calibrate(
    gm: fx.GraphModule, layout: Layout, data: Data, images: int, batch: int, device: str, stop: StopToken
) -> Generator[Event, None, Mapping[str, QParams]]:
    """The grid of each value class, from the first ``images`` of the training split."""
    total = data.count("train", images)
    if total == 0:
        raise EngineError("the calibration set is empty: data.calibration must be 1 or more and the training split must hold images")
    graph = copy.deepcopy(gm).to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    observed = Observed(graph, layout)
    ticker = Ticker("calibrate", total, "img", clock=stop.clock)
    for x, _ in data.batches("train", batch, limit=images, device=device):
        stop.check()
        observed.batch(x)
        yield from ticker.advance(len(x))
    return observed.grids()
