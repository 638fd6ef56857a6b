"""A program in which each convolution rounds its own result, for runtimes that have no other integer convolution.

torch's kernels add a residual, or run an activation, before they round; some convolutions leave a float. Here such a convolution
gets a grid of its own, from the range of its values on training images that matters for what follows, which comes as a step of its own.
Its integers are rounded twice then, and differ by one step from those of the kernel here and there, most of all behind a residual.
A convolution behind which no other layer comes gives the model's outputs: it keeps its float, which a grid would cut off and round,
and the runtime computes that one layer in floats on the very same integers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from engine.export.base import ExportContext
from engine.kernels.base import ACTIVATIONS
from engine.kernels.simulate import Simulate
from engine.lowering.graph.program import Program, Step, grid, grid_from
from engine.lowering.graph.runtime import QuantizedModel
from engine.numerics.qparams import QParams, affine, dequantize, quantize

_BITS = 8
_INSIDE = ("none", "relu", "relu6")
_BATCH = 32
# Parts of the output's step that a convolution alone may be rounded to, the finest first.
_ODD = (7, 5, 3, 1)
# Where an activation is looked at: sixteen for each step of the grid that it is rounded to before.
_PLACES = 4096
# Activations whose function has another name.
_CALLS: dict[str, dict[str, Any]] = {"gelu_tanh": {"function": "F.gelu", "kwargs": {"dict": {"approximate": "tanh"}}}}


def split(context: ExportContext) -> QuantizedModel:
    """The model with those convolutions taken apart; the same model where there are none."""
    program = context.model.program
    last = _last(program)
    apart = [step for step in program.steps if _taken_apart(step) and not (_is_bare(step) and step.output in last)]
    if not apart:
        whole: QuantizedModel = context.model
        return whole
    ranges = _ranges(context, apart)
    steps: list[Step] = []
    for step in program.steps:
        steps += _parts(step, ranges[step.output]) if step.output in ranges else [step]
    return QuantizedModel(replace(program, steps=tuple(steps)), [Simulate()], context.whole)


def _taken_apart(step: Step) -> bool:
    a = step.attrs
    return step.op == "layer" and a["kind"] == "conv" and bool(a["accumulate"] or a["output"] is None or a["activation"] not in _INSIDE)


def _is_bare(step: Step) -> bool:
    """Whether nothing but the layer itself is in the kernel, and it leaves a float."""
    a = step.attrs
    return a["output"] is None and not a["accumulate"] and a["activation"] == "none"


def _last(program: Program) -> frozenset[str]:
    """The outputs of layers that no other layer reads, also through further steps."""
    read: set[str] = set()
    for step in reversed(program.steps):
        if step.op == "layer" or step.output in read:
            read.update(step.inputs)
    return frozenset(step.output for step in program.steps if step.op == "layer" and step.output not in read)


def _alone(step: Step, output: Any, name: str) -> Step:
    """The convolution without what follows it inside the kernel. A relu stays where nothing is added before it."""
    stays = step.attrs["activation"] if not step.attrs["accumulate"] and step.attrs["activation"] in _INSIDE else "none"
    return Step("layer", name, step.inputs[:1], {**step.attrs, "accumulate": None, "output": output, "activation": stays})


def _parts(step: Step, ends: tuple[float, float]) -> list[Step]:
    a, inner = step.attrs, grid(_own_grid(step, *ends))
    own = f"{step.output.partition(':')[0]}_alone:q"
    alone = _alone(step, inner, own)
    if a["accumulate"]:
        return [alone, Step("sum", step.output, (own, step.inputs[1]), {
            "left": inner, "right": a["accumulate"], "output": a["output"], "relu": a["activation"] == "relu",
        })]  # fmt: skip
    if a["activation"] in _INSIDE:
        return [alone, Step("dequantize", step.output, (own,), {"grid": inner})]
    number, active = f"{own[:-2]}_number", f"{own[:-2]}_{a['activation']}"
    call = {"args": {"tuple": [{"$": number}]}, **_CALLS.get(a["activation"], {"function": f"F.{a['activation']}", "kwargs": {"dict": {}}})}
    last = active if a["output"] else step.output
    parts = [alone, Step("dequantize", number, (own,), {"grid": inner}), Step("call", last, (number,), call)]
    return [*parts, Step("quantize", step.output, (active,), {"grid": a["output"]})] if a["output"] else parts


def _own_grid(step: Step, low: float, high: float) -> QParams:
    """The grid of a convolution alone. Where the residual has the step of the output, an odd part of it, as far as 8 bits reach: a sum
    of whole steps is then rounded as if once, for half a step lies midway between two of an odd number of parts."""
    out, residual = (grid_from(step.attrs[key]) for key in ("output", "accumulate"))
    if out is not None and residual is not None and out.scale == residual.scale and math.isfinite(high - low):
        for parts in _ODD:
            scale = torch.tensor(out.scale / parts, dtype=torch.float32).item()
            below, above = math.ceil(-low / scale), math.ceil(high / scale)
            if below + above < 2**_BITS:
                return QParams(scale, below)
    return affine(low, high, _BITS)


def _ranges(context: ExportContext, apart: list[Step]) -> dict[str, tuple[float, float]]:
    """The range that each convolution alone needs a grid for, by the step's output."""
    found: dict[str, tuple[float, float]] = {}
    bare: Program = replace(context.model.program, steps=tuple(_alone(step, None, step.output) for step in apart))
    kernel = Simulate()
    probes = {step.output: kernel.build(QuantizedModel.layer(bare, step)) for step in bare.steps}
    with torch.inference_mode():
        for start in range(0, context.count, _BATCH):
            values: dict[str, Tensor] = context.model.watch(*context.items(start, start + _BATCH))
            for step in apart:
                low, high = _needed(step, probes[step.output](values[step.inputs[0]]), values)
                before = found.get(step.output, (0.0, 0.0))
                found[step.output] = (min(before[0], low), max(before[1], high))
    return {step.output: _without_tails(step, *found[step.output]) for step in apart}


def _needed(step: Step, made: Tensor, values: Mapping[str, Tensor]) -> tuple[float, float]:
    """The narrowest range to which the convolution's results ``made`` may be clipped so that the sum with the residual, which the
    output's grid clips, stays the same: a result beyond the ends is one whose sum lies beyond that grid with any value up to the end.
    Without a residual, the least and the greatest."""
    a, out = step.attrs, grid_from(step.attrs["output"])
    if not a["accumulate"] or out is None or a["activation"] not in _INSIDE:
        return made.min().item(), made.max().item()
    residual = grid_from(a["accumulate"])
    assert residual is not None
    added = dequantize(values[step.inputs[1]], residual)
    low, high = -out.zero_point * out.scale, (out.qmax - out.zero_point) * out.scale
    low, high = (low if a["activation"] == "none" else 0.0), (min(high, 6.0) if a["activation"] == "relu6" else high)
    return torch.maximum(made, low - added).min().item(), torch.minimum(made, high - added).max().item()


def _without_tails(step: Step, low: float, high: float) -> tuple[float, float]:
    """The range less both ends on which the activation, rounded to the output's grid, is one integer: below -3 hardswish is 0."""
    a, out = step.attrs, grid_from(step.attrs["output"])
    if a["accumulate"] or out is None or a["activation"] in _INSIDE:
        return low, high
    places = torch.linspace(low, high, _PLACES)
    codes = quantize(ACTIVATIONS[a["activation"]](places), out)
    same_as_first, same_as_last = (codes == codes[0]).int().cumprod(0), (codes == codes[-1]).flip(0).int().cumprod(0)
    if same_as_first.all():
        return low, high
    return places[same_as_first.sum() - 1].item(), places[len(places) - same_as_last.sum()].item()
