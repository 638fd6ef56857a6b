"""The rounding of one layer, learned on a sample of what it reads (AdaRound, Nagel et al. 2020, arXiv:2004.10568).

The layer is given what the quantized layers before it put out, and is to give, with the activation after it, what the fp32 layer gives
on its own inputs (section 3.4, equation 25). It begins at the better of two roundings by GPTQ: of the fp32 weights, and of
those that by least squares make good what linear weights can of the errors before the layer."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from engine.algorithms.channelwise import shaped
from engine.algorithms.gptq import gptq
from engine.algorithms.patches import Patching
from engine.algorithms.soft_rounding import SoftRounding
from engine.events.event import Event
from engine.events.progress import Ticker
from engine.kernels.base import ACTIVATIONS, geometry
from engine.lowering.graph.reconstruction import Layer, Reconstruction
from engine.lowering.graph.segments import Segment
from engine.lowering.graph.streams import reads_of
from engine.numerics.qtensor import QTensor
from engine.numerics.sqnr import sqnr_db
from engine.numerics.weights import WeightQParams

STEPS = 1000
# Patches that are kept of all items, and that a step sees; fewer where a patch is large.
ROWS, BATCH, NUMBERS = 2**14, 1024, 2**26
RATE, BIAS_RATE = 1e-2, 1e-3
# How far the fitted weights are drawn towards those of fp32, in parts of each input's second moment.
DAMPING = 0.1


@dataclass(frozen=True)
class Samples:
    """Of a layer: patches (groups, n, inputs) of what it reads, the fp32 layer's outputs (n, out) there before its activation and, as
    ``targets``, after it, and what is added before the activation, (n, out) or None."""

    inputs: Tensor
    plain: Tensor
    targets: Tensor
    others: Tensor | None

    def rows(self, rows: Tensor) -> Samples:
        others = None if self.others is None else self.others[rows]
        return Samples(self.inputs[:, rows], self.plain[rows], self.targets[rows], others)

    def products(self, weight: Tensor) -> Tensor:
        """(n, out) of ``weight`` (out, inputs)."""
        groups, rows, inputs = self.inputs.shape
        return torch.matmul(self.inputs, weight.reshape(groups, -1, inputs).transpose(1, 2)).transpose(0, 1).reshape(rows, -1)

    def outputs(self, weight: Tensor, bias: Tensor | None, activation: Callable[[Tensor], Tensor]) -> Tensor:
        found = self.products(weight)
        found = found if bias is None else found + bias
        return activation(found if self.others is None else found + self.others)

    def error(self, weight: Tensor, bias: Tensor | None, activation: Callable[[Tensor], Tensor]) -> Tensor:
        """The squared error of a layer of ``weight`` (out, inputs) and ``bias`` (out,), a mean over the patches."""
        return (self.outputs(weight, bias, activation) - self.targets).square().sum() / len(self.targets)

    def fitted(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Weight and bias of least squared error before the activation on these patches, drawn towards those of fp32 by ``DAMPING``."""
        left = self.plain - self.products(weight) - (0.0 if bias is None else bias)
        left = left if self.others is None else left - self.others
        mean = left.mean(0) if bias is not None else torch.zeros_like(left[0])
        moved = []
        for x, error in zip(self.inputs.double(), self._by_group((left - mean).double()), strict=True):
            centre = x.mean(0) if bias is not None else torch.zeros_like(x[0])
            x = x - centre
            second = x.T @ x / len(x)
            damping = DAMPING * second.diagonal() + 1e-6 * second.diagonal().mean() + 1e-12
            moved.append(torch.linalg.solve(second + torch.diag(damping), x.T @ error / len(x)).T)
        change = torch.cat(moved).to(weight.dtype)
        if bias is None:
            return weight + change, None
        return weight + change, bias + mean - self.products(change).mean(0)

    def rounded(self, weight: Tensor, grid: QTensor) -> QTensor:
        """``weight`` on the grid of ``grid`` by GPTQ, for these patches."""
        grids, codes = WeightQParams.of(grid), []
        out = len(weight) // len(self.inputs)
        for group, x in enumerate(self.inputs):
            part = slice(group * out, (group + 1) * out)
            multiplier = None if grids.multiplier is None else grids.multiplier[part]
            centred = x - x.mean(0)
            second = centred.T @ centred / len(x)
            codes.append(gptq(weight[part], WeightQParams(grids.scheme, grids.scale[part], None, multiplier), second)[0].codes)
        return grids.with_codes(torch.cat(codes))

    def _by_group(self, value: Tensor) -> Tensor:
        """(groups, n, out / groups) of (n, out)."""
        return value.reshape(len(value), len(self.inputs), -1).transpose(0, 1)


def learn_layer(work: Reconstruction, segment: Segment, generator: torch.Generator, ticker: Ticker) -> Generator[Event, None, None]:
    """Learn the rounding of the one layer of ``segment``, all of whose values are known but for its quantized output; it is taken
    where it has less error on the items held back than the layer as it was. Yields Progress; raises Cancelled on stop."""
    (name,) = segment.layers
    before, unit = work.layers[name], work.units.get(name)
    activation = ACTIVATIONS[unit.activation_kind if unit else "none"]
    patching = patching_of(before.module)
    rows = max(min(ROWS, NUMBERS // (patching.groups * before.weight.codes[0].numel())), BATCH)
    data = _samples(work, segment, patching, work.seen, rows, generator)
    held = _samples(work, segment, patching, work.held or work.seen, rows // 4, generator)
    weight, bias = work.parameters(name)
    fitted, fitted_bias = data.fitted(weight.flatten(1), bias)
    again = Layer.of(before.module, shaped(data.rounded(fitted, before.weight), weight.shape), fitted_bias)
    with torch.no_grad():
        errors = [data.error(layer.held.flatten(1), layer.bias, activation) for layer in (before, again)]
    start, aim = (again, fitted) if errors[1] < errors[0] else (before, weight.flatten(1))
    scale, spread = min(errors).clamp_min(1e-30), data.targets.std().clamp_min(1e-9)
    soft = SoftRounding(aim, start.weight)
    shift = None if start.bias is None else nn.Parameter(torch.zeros_like(start.bias))
    groups = [{"params": [soft.v], "lr": RATE}, *([] if shift is None else [{"params": [shift], "lr": BIAS_RATE}])]
    optimizer = torch.optim.Adam(groups)
    for step in range(STEPS):
        work.stop.check()
        part = data.rows(torch.randint(len(data.targets), (min(BATCH, len(data.targets)),), generator=generator))
        moved = None if start.bias is None or shift is None else start.bias + shift * spread
        loss = part.error(soft(), moved, activation) / scale + soft.penalty(step, STEPS)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        yield from ticker.advance()
    with torch.no_grad():
        moved = None if start.bias is None or shift is None else start.bias + shift * spread
        candidates = [Layer.of(before.module, shaped(soft.rounded(), weight.shape), moved), again]
        signal = held.targets.square().sum().item() / len(held.targets)
        old, *judged = (held.error(layer.held.flatten(1), layer.bias, activation).item() for layer in (before, *candidates))
    best = min(range(2), key=judged.__getitem__)
    how = work.how(name)
    title = f"{how.title if how else ''}{', GPTQ on fitted weights' if best else ''}"
    mine, other = sqnr_db(signal, judged[best]), sqnr_db(signal, old)
    if judged[best] < old:
        work.take({name: candidates[best]})
        work.notes[name] = f"{title}: {mine:.1f} dB after the activation, on calibration items held back, against {other:.1f} dB before"
    else:
        kept = work.notes.get(name) or "as it was rounded before"
        work.notes[name] = f"{kept}; {other:.1f} dB on calibration items held back, against {mine:.1f} dB with {title}"


def patching_of(module: nn.Module) -> Patching:
    """The geometry of a convolution or linear layer."""
    if isinstance(module, nn.Linear):
        return Patching()
    return Patching(kernel=tuple(module.kernel_size), **geometry(module))  # type: ignore[arg-type]


def _samples(
    work: Reconstruction, segment: Segment, patching: Patching, chunks: Sequence[int], rows: int, generator: torch.Generator
) -> Samples:
    (name,) = segment.layers
    unit = work.units.get(name)
    read = work.nodes[name].all_input_nodes[0]
    added = work.nodes[unit.other] if unit and unit.other else None
    chain = [node for node in segment.nodes if node.name == name or node.name in work.folded]
    inputs, plain, targets, others = [], [], [], []
    each = -(-rows // max(len(chunks), 1))
    for chunk in chunks:
        work.stop.check()
        x, y = work.rounded.values[read][chunk], work.exact.values[segment.output][chunk]
        windows = patching.windows(x)
        places = windows.shape[2 : 2 + max(len(patching.kernel), 1)].numel()
        taken = torch.randperm(len(windows) * places, generator=generator)[:each]
        items, positions = taken // places, taken % places
        inputs.append(patching.patches(windows, items, positions).contiguous())
        targets.append(_at(y, patching, items, positions))
        with torch.no_grad():
            before = work.exact.nodes.run_nodes(chain, work.exact.given(chunk, reads_of(chain)))[chain[-1]]
        if added is not None:
            before = before + work.exact.values[added][chunk]
            others.append(_at(work.rounded.values[added][chunk], patching, items, positions))
        plain.append(_at(before, patching, items, positions))
    return Samples(torch.cat(inputs, 1), torch.cat(plain), torch.cat(targets), torch.cat(others) if others else None)


def _at(value: Tensor, patching: Patching, items: Tensor, positions: Tensor) -> Tensor:
    """(n, out) of a layer's output at flat ``positions``."""
    dims = len(patching.kernel)
    if not dims:
        whole = value.reshape(len(value), -1, value.shape[-1]) if value.dim() > 1 else value.reshape(1, 1, -1)
        return whole[items, positions]
    return (value if value.dim() == dims + 2 else value[None]).flatten(2)[items, :, positions]
