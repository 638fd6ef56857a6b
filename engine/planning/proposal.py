"""The proposal: for each layer a spec and a sentence of reason. Torch-free."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod

from engine.planning.layer import Layer, Output
from engine.recipe.capabilities import Role
from engine.recipe.presets import DYNAMIC, INT8, PRESETS
from engine.recipe.spec import FP32, ActivationSpec, LayerSpec, WeightSpec

_SMALL = 4096
# A linear layer that is most of a small network takes four bits well; where it is one of many, as in a transformer, all of them in four
# bits add up to more than rounding to nearest bears.
_LARGE_SHARE = 0.1
# About 3 % of what such an output is: more moves boxes and reorders scores.
LEAST_OF_OUTPUT = 30.0
_EIGHT = PRESETS["w8a8"]
Proposal = tuple[LayerSpec, str]


def propose(layer: Layer, paths: Sequence[str]) -> Proposal:
    """Spec and reason for one layer; ``paths`` are those of all layers that can be quantized, in the model's order."""
    if layer.output is not None and layer.quantizable:
        return _output(layer, layer.output)
    return _BY_ROLE[layer.capabilities.role](layer, paths)


def _convolution(layer: Layer, paths: Sequence[str]) -> Proposal:
    if layer.path == paths[0]:
        return _EIGHT, f"first layer: it sees the raw image and errors here reach everything; {_holds(layer)}, so 8 bits cost nothing"
    if layer.path == paths[-1]:
        return _last(layer)
    return _EIGHT, f"convolution with {_percent(layer.time_share)} of the time: int8 weights, one scale a channel, on an integer kernel"


def _linear(layer: Layer, paths: Sequence[str]) -> Proposal:
    if layer.path == paths[-1] and len(paths) > 1:
        return _last(layer)
    weights = prod(layer.weight_shape)
    if weights < _SMALL:
        return _EIGHT, f"linear with only {_holds(layer)}: four bits would save {weights // 2} bytes"
    if layer.params_share < _LARGE_SHARE:
        return _EIGHT, f"linear with {_holds(layer)}, one of many: four bits in each of them would add up"
    smaller = f"linear with {_holds(layer)}: four bits halve it again"
    if layer.weight_shape[1] >= 64:
        return LayerSpec(WeightSpec(4, "per-group", 32, "mse"), ActivationSpec(8)), f"{smaller}, groups of 32 keep large weights apart"
    return LayerSpec(WeightSpec(4, "per-channel", method="mse"), ActivationSpec(8)), f"{smaller}; too few inputs for groups"


def _last(layer: Layer) -> Proposal:
    return _EIGHT, f"last layer: its errors go straight into the scores; {_holds(layer)}, so 8 bits cost nothing"


def _output(layer: Layer, output: Output) -> Proposal:
    left = f"8 bits alone leave it {output.sqnr_db:.0f} dB from fp32"
    if output.sqnr_db < LEAST_OF_OUTPUT:
        return FP32, f"{output.what}: {left}, less than {LEAST_OF_OUTPUT:.0f} dB, so it stays in float; {_holds(layer)}"
    return _EIGHT, f"{output.what}: {left}; fewer would show in every answer, and it has only {_holds(layer)}"


def _matrix(layer: Layer, paths: Sequence[str]) -> Proposal:
    return LayerSpec(INT8, DYNAMIC), "8 bits per channel cost next to nothing; activations get a scale for each token as it comes"


def _embedding(layer: Layer, paths: Sequence[str]) -> Proposal:
    return LayerSpec(INT8), "a scale for each row: a quarter of the size, and a token reads one row"


_BY_ROLE: Mapping[Role, Callable[[Layer, Sequence[str]], Proposal]] = {
    "none": lambda layer, paths: (FP32, ""), "convolution": _convolution, "linear": _linear, "block": _matrix, "outside": _matrix,
    "embedding": _embedding,
}  # fmt: skip


def _holds(layer: Layer) -> str:
    return f"{_percent(layer.params_share)} of the parameters"


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %" if share >= 0.1 else f"{100 * share:.1f} %"
