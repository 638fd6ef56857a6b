"""Biases that take up the mean error of a layer's output.

Bias correction (Nagel et al. 2019, arXiv:1906.04721, section 4.2; measured, as in its appendix D): the mean of what a layer puts out
before its activation, with all layers before it quantized, is brought back to that of fp32, channel by channel, in graph order.
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
from engine.lowering.graph.reconstruction import Reconstruction, Start
from engine.lowering.graph.segments import Segment, segments
from engine.lowering.graph.simulated import output_sqnr
from engine.lowering.graph.streams import reads_of


@dataclass(frozen=True)
class Corrected:
    """What was found, and SQNR in dB of the results on the items held back without and with it. ``shifts`` is what the bias of each
    layer node was moved by, its rounded weights being as they were; of layers that it would not have bettered there is none."""

    found: Reconstructed
    shifts: Mapping[str, Tensor]
    before: float
    after: float


def correct(start: Start, chunks: Sequence[tuple[Tensor, ...]], stop: StopToken) -> Generator[Event, None, Corrected]:
    """Correct the biases of ``start`` on ``chunks``, the graph's inputs, of which every eighth judges. Layers without a bias keep none.
    Yields Progress in layers; raises Cancelled on stop."""
    without = Reconstruction(start, chunks, stop)
    judges = without.held or without.seen
    before = output_sqnr(without, judges)
    work = Reconstruction(start, chunks, stop)
    found = segments(start.gm, start.layout, start.weights, ())
    ticker = Ticker("convert", sum(len(segment.layers) for segment in found), "layers", clock=stop.clock)
    shifts: dict[str, Tensor] = {}
    for segment, keep in zip(found, kept_after(start.gm, found), strict=True):
        stop.check()
        for name in segment.layers:
            shift = _shift(work, segment, name)
            if shift is not None:
                shifts[name] = shift
                layer = work.layers[name]
                assert layer.bias is not None
                work.take({name: replace(layer, bias=layer.bias + shift)})
            yield from ticker.advance()
        work.exact.run(segment.nodes, keep)
        work.rounded.run(segment.nodes, keep)
    after = output_sqnr(work, judges)
    learned = {name: work.layers[name] for name in shifts}
    moved = {name: layer.bias - _bias(work, name) for name, layer in learned.items() if layer.bias is not None}
    weights = {name: layer.weight for name, layer in learned.items()}
    grids = {name: grid.grid() for name, grid in work.activations.items()}
    return Corrected(Reconstructed(weights, moved, {}, grids), shifts, before, after)


def _bias(work: Reconstruction, name: str) -> Tensor:
    bias = work.parameters(name)[1]
    assert bias is not None
    return bias


@torch.no_grad()
def _shift(work: Reconstruction, segment: Segment, name: str) -> Tensor | None:
    """What the layer's bias is to be moved by; None where that leaves no less error on the items held back, and without a bias."""
    layer, node = work.layers[name], work.nodes[name]
    if layer.bias is None or not work.alone(name):
        return None
    chain = [n for n in segment.nodes if n is node or n.name in work.folded]

    def outputs(chunk: int) -> tuple[Tensor, Tensor]:
        exact = work.exact.nodes.run_nodes(chain, work.exact.given(chunk, reads_of(chain)))[chain[-1]]
        read = node.all_input_nodes[0]
        return _by_channel(exact, layer.module), _by_channel(layer(work.rounded.values[read][chunk]), layer.module)

    total, count = torch.zeros(len(layer.bias), dtype=torch.float64), 0
    for chunk in work.seen:
        work.stop.check()
        exact, rounded = outputs(chunk)
        total += (exact.double() - rounded.double()).sum(1)
        count += exact.shape[1]
    shift = (total / max(count, 1)).float()
    old = new = 0.0
    for chunk in work.held or work.seen:
        exact, rounded = outputs(chunk)
        old += float((exact - rounded).square().sum(dtype=torch.float64))
        new += float((exact - rounded - shift[:, None]).square().sum(dtype=torch.float64))
    return shift if new < old else None


def _by_channel(value: Tensor, module: Any) -> Tensor:
    """(out, n) of a layer's output."""
    if isinstance(module, nn.Linear):
        return value.reshape(-1, value.shape[-1]).T
    whole = value if value.dim() == len(module.kernel_size) + 2 else value[None]
    return whole.transpose(0, 1).flatten(1)
