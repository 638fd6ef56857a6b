"""The proposal: for each layer a spec and a sentence of reason."""

from __future__ import annotations

from collections.abc import Sequence

from torch import fx, nn

from engine.lowering.graph.kinds import kind
from engine.recipe.presets import PRESETS
from engine.recipe.spec import ActivationSpec, LayerSpec, WeightSpec

_SMALL = 4096


def propose(
    path: str, node: fx.Node, module: nn.Module, layers: Sequence[str], params_share: float, time_share: float
) -> tuple[LayerSpec, str]:
    """Spec and reason for one convolution or linear layer.

    ``layers`` are all quantizable paths in graph order; the shares are parts (0..1) of the model's parameters and of
    its fp32 time.
    """
    eight = PRESETS["w8a8"]
    holds = f"{_percent(params_share)} of the parameters"
    takes = f"{_percent(time_share)} of the time"
    if path == layers[0] and kind(node) == "conv":
        return eight, f"first layer: it sees the raw image and errors here reach everything; {holds}, so 8 bits cost nothing"
    if path == layers[-1] and len(layers) > 1:
        return eight, f"last layer: its errors go straight into the scores; {holds}, so 8 bits cost nothing"
    if kind(node) == "conv":
        return eight, f"convolution with {takes}: int8 weights, one scale a channel, on an integer kernel"
    assert isinstance(module, nn.Linear)
    if module.weight.numel() < _SMALL:
        return eight, f"linear with only {holds}: four bits would save {module.weight.numel() // 2} bytes"
    if module.in_features >= 64:
        weights = WeightSpec(4, "per-group", 32, "mse")
        return LayerSpec(
            weights, ActivationSpec(8)
        ), f"linear with {holds}: four bits halve it again, groups of 32 keep large weights apart"
    weights = WeightSpec(4, "per-channel", method="mse")
    return LayerSpec(weights, ActivationSpec(8)), f"linear with {holds}: four bits halve it again; too few inputs for groups"


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %" if share >= 0.1 else f"{100 * share:.1f} %"
