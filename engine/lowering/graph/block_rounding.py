"""The rounding of a residual block, all its layers learned together.

BRECQ (Li et al. 2021, arXiv:2102.05426): the block's output is to be that of the fp32 block; errors are weighted with the squared gradient
of the task's loss, the diagonal of the Fisher information (section 3.3, equation 10). QDrop (Wei et al. 2022, arXiv:2203.05740,
section 3.3): while that is learned each activation is left unrounded with a probability of one half, and so is what enters the block.
The steps of the activations' grids are learned with the rounding (LSQ, Esser et al. 2020, arXiv:1902.08153).
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from engine.algorithms.channelwise import shaped
from engine.algorithms.soft_rounding import SoftRounding
from engine.events.event import Event
from engine.events.progress import Ticker
from engine.kernels.base import compute
from engine.lowering.graph.fake_quantize import FakeQuantActivation
from engine.lowering.graph.reconstruction import Layer, Reconstruction
from engine.lowering.graph.segments import Segment
from engine.lowering.graph.streams import Nodes, reads_of

STEPS = 400
RATE, BIAS_RATE, SCALE_RATE, STEP_RATE = 1e-2, 1e-3, 1e-3, 1e-3
# The probability that a value is left unrounded.
DROPPED = 0.5
# Answers drawn from the fp32 model for each item.
DRAWS = 2


class SoftLayer(nn.Module):
    """A layer whose rounding, bias and scales are being learned."""

    def __init__(self, before: Layer, weight: Tensor) -> None:
        super().__init__()
        self._before = before
        self.soft = SoftRounding(weight.flatten(1), before.weight, scaled=before.weight.scale.dtype == torch.float32)
        self.shift = None if before.bias is None else nn.Parameter(torch.zeros_like(before.bias))

    def forward(self, x: Tensor) -> Tensor:
        return compute(self._before.module, x, self.soft().reshape(self._before.weight.shape), self._bias())

    def _bias(self) -> Tensor | None:
        return self._before.bias if self._before.bias is None or self.shift is None else self._before.bias + self.shift

    @torch.no_grad()
    def layer(self) -> Layer:
        return Layer.of(self._before.module, shaped(self.soft.rounded(), self._before.weight.shape), self._bias())

    def groups(self) -> list[dict[str, Any]]:
        """What an optimizer takes."""
        rates = ((self.soft.v, RATE), (self.shift, BIAS_RATE), (self.soft.log_scale, SCALE_RATE))
        return [{"params": [parameter], "lr": rate} for parameter, rate in rates if parameter is not None]


def learn_block(
    work: Reconstruction, segment: Segment, wanted: Mapping[str, str], generator: torch.Generator, ticker: Ticker
) -> Generator[Event, None, None]:
    """Learn the rounding of the layers ``wanted`` of ``segment``, each with the title of its method, and the grids of the values that it
    sets; all of it is taken where the block has less error on the items held back than it had. Yields Progress; raises Cancelled."""
    soft = {name: SoftLayer(work.layers[name], work.parameters(name)[0]) for name in wanted}
    grids = [work.activations[c.name] for c in work.classes_in(segment.nodes)]
    steps_before = [grid.step.detach().clone() for grid in grids]
    own = {node.name for node in segment.nodes}
    rounding = {source: grid for source, grid in work.sources.items() if source in own}
    training = Nodes(work.gm, {**work.layers, **soft}, work.folded, {s: _dropping(grid, generator) for s, grid in rounding.items()})
    reads, target = reads_of(segment.nodes), work.exact.values[segment.output]
    importance = fisher(work, segment, generator)

    def error(nodes: Nodes, chunk: int, values: Mapping[fx.Node, Any]) -> Tensor:
        result: Tensor = nodes.run_nodes(segment.nodes, values)[segment.output]
        squares: Tensor = (result - target[chunk]).square()
        return squares.mean() if importance is None else (squares * importance[chunk]).mean()

    def judged(layers: Mapping[str, Layer]) -> float:
        nodes, chunks = Nodes(work.gm, {**work.layers, **layers}, work.folded, rounding), work.held or work.seen
        with torch.no_grad():
            return sum(error(nodes, chunk, work.rounded.given(chunk, reads)).item() for chunk in chunks) / len(chunks)

    old = judged({})
    optimizer = torch.optim.Adam([group for layer in soft.values() for group in layer.groups()])
    optimizer_of_steps = (
        torch.optim.Adam([{"params": [grid.step], "lr": STEP_RATE * grid.step.item()} for grid in grids]) if grids else None
    )
    order: list[int] = []
    for step in range(STEPS):
        work.stop.check()
        if not order:
            order = [work.seen[place] for place in torch.randperm(len(work.seen), generator=generator).tolist()]
        chunk = order.pop()
        clean = work.exact.given(chunk, reads)
        given = {node: _mixed(value, clean[node], generator) for node, value in work.rounded.given(chunk, reads).items()}
        loss = error(training, chunk, given) / max(old, 1e-30)
        for layer in soft.values():
            loss = loss + layer.soft.penalty(step, STEPS)
        for one in filter(None, (optimizer, optimizer_of_steps)):
            one.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        for one in filter(None, (optimizer, optimizer_of_steps)):
            one.step()
        yield from ticker.advance()
    found = {name: layer.layer() for name, layer in soft.items()}
    new = judged(found)
    part, better = new / max(old, 1e-30), new < old
    if better:
        work.take(found)
    else:
        with torch.no_grad():
            for grid, step_before in zip(grids, steps_before, strict=True):
                grid.step.copy_(step_before)
    for name, title in wanted.items():
        if better:
            work.notes[name] = f"{title}: {part:.2f} of the block's error before, on calibration items held back"
        else:
            kept = work.notes.get(name) or "as it was rounded before"
            work.notes[name] = f"{kept}; {title} had {part:.2f} times the block's error on calibration items held back"


def _dropping(grid: FakeQuantActivation, generator: torch.Generator) -> Callable[[Tensor], Tensor]:
    return lambda x: torch.where(torch.rand(x.shape, generator=generator) < DROPPED, x, grid(x))


def _mixed(value: Any, clean: Any, generator: torch.Generator) -> Any:
    if not isinstance(value, Tensor) or not value.is_floating_point():
        return value
    return torch.where(torch.rand(value.shape, generator=generator) < DROPPED, clean, value)


def fisher(work: Reconstruction, segment: Segment, generator: torch.Generator) -> list[Tensor] | None:
    """For each chunk the squared gradient, at the output of ``segment``, of the log-likelihood of answers that the fp32 model itself
    draws, their mean being 1: no labels are looked at. None where the task's outputs are no logits, and where other values than the
    segment's output are read after it."""
    results = work.start.results
    nodes = list(work.gm.graph.nodes)
    rest, last = nodes[nodes.index(segment.output) + 1 : -1], nodes[-1]
    if results is None or any(read is not segment.output and read.op != "get_attr" for read in reads_of(rest)):
        return None
    runner, found = Nodes(work.gm), []
    constants = {read: value for read in reads_of(rest) if read.op == "get_attr" for value in [runner.run_nodes([read], {})[read]]}
    for value in work.exact.values[segment.output]:
        work.stop.check()
        at = value.detach().clone().requires_grad_(True)
        values = runner.run_nodes(rest, {segment.output: at, **constants})
        (given,) = last.args
        outputs = results(fx.map_arg(given, values.__getitem__))[0]
        logits = outputs.reshape(-1, outputs.shape[-1])
        total = torch.zeros_like(value)
        for draw in range(DRAWS):
            answers = torch.multinomial(logits.detach().softmax(1), 1, generator=generator)
            likelihood = F.log_softmax(logits, 1).gather(1, answers).sum()
            (gradient,) = torch.autograd.grad(likelihood, at, retain_graph=draw + 1 < DRAWS)
            total += gradient.square()
        found.append(total)
    mean = sum(part.mean().item() for part in found) / len(found)
    return [part / mean for part in found] if mean > 0 else None
