"""How far the layers of a trained decoder stand from those of fp32, on the same inputs."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.algorithms.gram import counted
from engine.events.cancellation import StopToken
from engine.events.event import Event
from engine.events.progress import Ticker
from engine.lowering.modules.observe import batches
from engine.lowering.modules.progress import MatrixQuantized
from engine.lowering.modules.quantized import QuantizedDecoder
from engine.models.anatomy import weight_of
from engine.numerics.qtensor import QTensor
from engine.numerics.sqnr import sqnr_db

# Alternating fits of rows and columns: each moves the other by a part of what the last one did.
_PASSES = 4


@dataclass
class _Seen:
    """``weight`` (out, in) and ``bias`` are fp32's; sums over tokens and outputs of what they give, and of what the layer differs."""

    weight: Tensor
    bias: Tensor | None
    signal: float = 0.0
    noise: float = 0.0

    def update(self, x: Tensor, out: Tensor) -> None:
        wanted = F.linear(x, self.weight)
        self.signal += float(wanted.square().sum(dtype=torch.float64))
        difference = out - wanted if self.bias is None else out - wanted - self.bias
        self.noise += float(difference.square().sum(dtype=torch.float64))


def noises(
    original: Any, before: QuantizedDecoder, told: Mapping[str, MatrixQuantized], model: Any, weights: Mapping[str, QTensor],
    windows: Sequence[Tensor], batch: int, stop: StopToken,
) -> Generator[Event, None, dict[str, MatrixQuantized]]:  # fmt: skip
    """``told`` of what ``before`` was rounded to, with the bytes of ``weights`` and with their SQNR where ``windows`` reach them.

    The signal is W x with the weights of ``original``, the fp32 model, and the inputs that ``model``, the trained one, gives the
    layer; the noise is how far the layer's output is from that, biases included. Training lowers the loss of the whole model and
    not this noise, so that a layer may have moved away from fp32 and the model towards it. Scales that were folded into weights
    are fitted to those of ``before`` by least squares. Yields Progress; raises Cancelled on stop.
    """
    sources = {note.folded_into for note in told.values() if note.folded_into}
    seen: dict[str, _Seen] = {}
    for path in weights:
        module = original.get_submodule(path)
        weight, rows = weight_of(module).float(), None
        columns = told[path].folded_into is not None
        if columns or path in sources:
            held = before.matrices[path].weight.dequantize().to(weight.device)
            weight, rows = folded(weight, held, columns, path in sources)
        bias = getattr(module, "bias", None)
        seen[path] = _Seen(weight, bias if bias is None or rows is None else bias * rows)
    current: dict[str, Tensor | None] = {"keep": None}
    hooks = [model.get_submodule(path).register_forward_hook(_look(it, current)) for path, it in seen.items()]
    ticker = Ticker("calibrate", len(windows), "windows", clock=stop.clock)
    try:
        with torch.inference_mode():
            for ids, keep in batches(windows, batch):
                stop.check()
                current["keep"] = keep
                model(input_ids=ids, use_cache=False)
                yield from ticker.advance(len(ids))
    finally:
        for hook in hooks:
            hook.remove()
    reached = {path: sqnr_db(it.signal, it.noise) for path, it in seen.items() if it.signal}
    trained = {path: replace(told[path], bytes=weights[path].bytes, sqnr_db=reached.get(path, told[path].sqnr_db)) for path in weights}
    return {**told, **trained}


@torch.no_grad()
def folded(weight: Tensor, held: Tensor, columns: bool, rows: bool) -> tuple[Tensor, Tensor]:
    """``weight`` with the factors of its columns and of its rows that bring it nearest to ``held``, and those of the rows (out,)."""
    left, right = weight.new_ones(len(weight), 1), weight.new_ones(1, weight.shape[1])
    for _ in range(_PASSES if columns and rows else 1):
        if columns:
            right = _fit(weight * left, held, 0)
        if rows:
            left = _fit(weight * right, held, 1)
    return weight * left * right, left.flatten()


def _fit(weight: Tensor, held: Tensor, along: int) -> Tensor:
    return (weight * held).sum(along, keepdim=True) / weight.square().sum(along, keepdim=True).clamp_min(1e-30)


def _look(seen: _Seen, current: Mapping[str, Tensor | None]) -> Any:
    def look(module: nn.Module, given: tuple[Tensor, ...], out: Tensor) -> None:
        x, y = (counted(tensor.reshape(-1, tensor.shape[-1]).float(), current["keep"]) for tensor in (given[0], out))
        seen.update(x, y)

    return look
