"""Biases that take up the mean error of a layer's output, and scales that take up its error of range.

Bias correction (Nagel et al. 2019, arXiv:1906.04721, section 4.2; measured, as in its appendix D): the mean of what a layer puts out
before its activation, with all layers before it quantized, is brought back to that of fp32, channel by channel, in graph order.

Re-estimation brings the standard deviation back too. It is what statistics of batch normalization gathered anew on the quantized network
do (Hubara et al. 2020, arXiv:2006.10518), for normalizations that are folded: a channel's scale takes up the factor.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from engine.events.cancellation import StopToken
from engine.events.event import Event
from engine.events.progress import Ticker
from engine.lowering.graph.reconstruct import Reconstructed, kept_after
from engine.lowering.graph.reconstruction import Layer, Reconstruction, Start
from engine.lowering.graph.segments import Segment, segments
from engine.lowering.graph.simulated import output_sqnr
from engine.lowering.graph.streams import reads_of

_LARGEST_GAIN = 8.0


@dataclass(frozen=True)
class Corrected:
    """What was found, and SQNR in dB of the results on the items held back without and with it. ``changes`` are by layer node; of layers
    that would not have been bettered there is none."""

    found: Reconstructed
    changes: Mapping[str, Change]
    before: float
    after: float


@dataclass(frozen=True)
class Change:
    """What a layer's outputs are multiplied by and moved by, (out,) each; its integers stay as they were."""

    gain: Tensor
    shift: Tensor

    def of(self, layer: Layer) -> Layer:
        assert layer.bias is not None
        weight = replace(layer.weight, scale=layer.weight.scale * self.gain[:, None])
        return Layer.of(layer.module, weight, layer.bias * self.gain + self.shift)


def correct(start: Start, chunks: Sequence[tuple[Tensor, ...]], stop: StopToken, ranges: bool = False) -> Generator[Event, None, Corrected]:
    """Correct the biases of ``start`` on ``chunks``, the graph's inputs, of which every eighth judges; with ``ranges`` the scales too.
    Layers without a bias stay as they are. Yields Progress in layers; raises Cancelled on stop."""
    without = Reconstruction(start, chunks, stop)
    judges = without.held or without.seen
    before = output_sqnr(without, judges)
    work = Reconstruction(start, chunks, stop)
    found = segments(start.gm, start.layout, start.weights, ())
    ticker = Ticker("convert", sum(len(segment.layers) for segment in found), "layers", clock=stop.clock)
    changes: dict[str, Change] = {}
    for segment, keep in zip(found, kept_after(start.gm, found), strict=True):
        stop.check()
        for name in segment.layers:
            change = _change(work, segment, name, ranges)
            if change is not None:
                changes[name] = change
                work.take({name: change.of(work.layers[name])})
            yield from ticker.advance()
        work.exact.run(segment.nodes, keep)
        work.rounded.run(segment.nodes, keep)
    after = output_sqnr(work, judges)
    learned = {name: work.layers[name] for name in changes}
    moved = {name: layer.bias - _bias(work, name) for name, layer in learned.items() if layer.bias is not None}
    weights = {name: layer.weight for name, layer in learned.items()}
    grids = {name: grid.grid() for name, grid in work.activations.items()}
    return Corrected(Reconstructed(weights, moved, {}, grids), changes, before, after)


def _bias(work: Reconstruction, name: str) -> Tensor:
    bias = work.parameters(name)[1]
    assert bias is not None
    return bias


@torch.no_grad()
def _change(work: Reconstruction, segment: Segment, name: str, ranges: bool) -> Change | None:
    """What betters the layer's outputs; None where that leaves no less error on the items held back, and without a bias."""
    layer, node = work.layers[name], work.nodes[name]
    if layer.bias is None or not work.alone(name):
        return None
    chain = [n for n in segment.nodes if n is node or n.name in work.folded]

    def outputs(chunk: int) -> tuple[Tensor, Tensor]:
        exact = work.exact.nodes.run_nodes(chain, work.exact.given(chunk, reads_of(chain)))[chain[-1]]
        read = node.all_input_nodes[0]
        return _by_channel(exact, layer.module).double(), _by_channel(layer(work.rounded.values[read][chunk]), layer.module).double()

    count = 0
    sums, squares = torch.zeros(2, len(layer.bias), dtype=torch.float64), torch.zeros(2, len(layer.bias), dtype=torch.float64)
    for chunk in work.seen:
        work.stop.check()
        both = torch.stack(outputs(chunk))
        sums, squares, count = sums + both.sum(2), squares + both.square().sum(2), count + both.shape[2]
    means = sums / max(count, 1)
    gain = torch.ones_like(means[0])
    if ranges:
        variances = (squares / max(count, 1) - means.square()).clamp_min(0)
        # A channel that is constant in one of them has no range to bring back.
        usable = variances.amin(0) > variances.amax(0) / _LARGEST_GAIN**2
        gain = torch.where(usable, (variances[0] / variances[1].where(usable, torch.ones_like(gain))).sqrt(), gain)
    shift = means[0] - gain * means[1]
    old = new = 0.0
    for chunk in work.held or work.seen:
        exact, rounded = outputs(chunk)
        old += float((exact - rounded).square().sum())
        new += float((exact - gain[:, None] * rounded - shift[:, None]).square().sum())
    return Change(gain.float(), shift.float()) if new < old else None


def _by_channel(value: Tensor, module: Any) -> Tensor:
    """(out, n) of a layer's output."""
    if isinstance(module, nn.Linear):
        return value.reshape(-1, value.shape[-1]).T
    whole = value if value.dim() == len(module.kernel_size) + 2 else value[None]
    return whole.transpose(0, 1).flatten(1)
