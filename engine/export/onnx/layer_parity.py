"""Each rounded value of a file on the measured model's inputs: what the file computes, apart from what a network makes of a rounding.

A runtime rounds a value between two steps to either, and a layer that rounds its sum before its activation rounds once more. A
network that is sensitive to that (one of random weights, or of a few bits) gives other outputs, though each layer computes the same.
Here every value that both have as integers is given to the file as the measured model has it, so that each layer begins anew.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from engine.export.base import ExportContext, LayerParity
from engine.numerics.sqnr import sqnr_db

_ITEMS = 8
_MADE = "/made"


def layer_parity(path: Path, context: ExportContext, options: Any) -> LayerParity | None:
    """The comparison on the first training items, with the session ``options`` that the file is run with; None where less than half of
    the measured model's integers have a counterpart in the file."""
    import onnx
    import onnxruntime

    inputs = context.items(0, min(_ITEMS, context.count))
    values = context.model.watch(*inputs)
    measured = {name.replace(":q", "_q"): x for name, x in values.items() if name.endswith(":q")}
    proto = onnx.load(path)
    names = [x.name for x in proto.graph.input]
    kinds = {x.name: onnx.numpy_helper.to_array(x).dtype for x in proto.graph.initializer}
    producers = {_base(node.output[0]): node for node in proto.graph.node if node.op_type == "QuantizeLinear"}
    clips = {node.input[0]: node for node in proto.graph.node if node.op_type == "Clip"}
    known: dict[str, _Rounded] = {}
    for name, x in measured.items():
        if name in producers:
            node = producers[name]
            known[name] = _Rounded(clips.get(node.output[0], node), kinds[node.input[2]], x)
    if not known or 2 * len(known) < len(measured):
        return None
    results = [x.name for x in proto.graph.output]
    given = dict(zip(names, (x.contiguous().numpy() for x in inputs), strict=True))
    places = {name: one.node.output[0] for name, one in known.items()}
    for name, one in known.items():
        one.node.output[0] += _MADE
        kind = onnx.helper.np_dtype_to_tensor_dtype(one.kind)
        proto.graph.input.append(onnx.helper.make_tensor_value_info(places[name], kind, None))
        proto.graph.output.append(onnx.helper.make_tensor_value_info(places[name] + _MADE, kind, None))
        given[places[name]] = np.ascontiguousarray(one.codes)
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    made = dict(zip((x.name for x in session.get_outputs()), session.run(None, given), strict=True))
    steps = {name: _rms(made[places[name] + _MADE], one.codes) for name, one in known.items()}
    worst = max(steps, key=lambda name: steps[name])
    signal = noise = 0.0
    for result, name in zip(context.model.program.results, results, strict=True):
        wanted = values[result].double()
        signal += float(wanted.square().sum())
        noise += float((torch.from_numpy(made[name]).double() - wanted).square().sum())
    return LayerParity(len(known), steps[worst], worst.removesuffix("_q"), sqnr_db(signal, noise))


@dataclass(frozen=True)
class _Rounded:
    """``node`` gives in the file, in elements of ``kind``, what the measured model has as ``value``."""

    node: Any
    kind: Any
    value: Tensor

    @property
    def codes(self) -> Any:
        return self.value.numpy().astype(self.kind)


def _base(name: str) -> str:
    """Without the number that makes it unique."""
    return re.sub(r"_q_\d+$", "_q", name)


def _rms(made: Any, wanted: Any) -> float:
    """The root of the mean square difference, in steps; infinite for another shape."""
    if made.shape != wanted.shape:
        return float("inf")
    return float(np.sqrt(np.mean((made.astype(np.float64) - wanted.astype(np.float64)) ** 2))) if made.size else 0.0
