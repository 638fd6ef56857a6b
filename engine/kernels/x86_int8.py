"""The integer kernels of oneDNN inside torch, on plain uint8 and int8 tensors (``torch.ops.onednn``).

Their schemas are private to torch: ``kernels.probe`` runs them in a child process against exact arithmetic before this
module is used.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from engine.kernels.base import ACTIVATIONS, IntegerLayer, LayerFunction
from engine.numerics.qparams import quantize

_POST_OPS: dict[str, tuple[str, list[float]]] = {
    "none": ("none", []),
    "relu": ("relu", []),
    "relu6": ("hardtanh", [0.0, 6.0]),
    "hardswish": ("hardswish", []),
}
# By spatial dimensions.
_FUSED: dict[int, tuple[str, ...]] = {1: ("none", "relu"), 2: tuple(_POST_OPS), 3: ("none", "relu")}


class OneDNN:
    """Per-channel int8 weights, uint8 activations, fused activation, requantization and residual sum."""

    name = "onednn"
    simulated = False

    def label(self, layer: IntegerLayer) -> str:
        if layer.kind == "linear":
            return "onednn.qlinear_pointwise"
        return "onednn.qconv2d_pointwise.binary" if layer.accumulate else "onednn.qconv_pointwise"

    def refuses(self, layer: IntegerLayer) -> str | None:
        if layer.activation not in _POST_OPS:
            return f"no fused {layer.activation}"
        if layer.kind == "linear" and layer.activation not in ("none", "relu"):
            return f"no fused {layer.activation} after a linear layer"
        if layer.kind == "conv" and layer.activation not in _FUSED[layer.dims]:
            return f"no fused {layer.activation} after a {layer.dims}-D convolution"
        if layer.accumulate and (layer.dims != 2 or layer.activation not in ("none", "relu") or layer.output is None):
            return "no fused sum of this form"
        return None

    def steps(self) -> None:
        return None

    def build(self, layer: IntegerLayer) -> LayerFunction:
        zero_points = torch.zeros(len(layer.weight_scale), dtype=torch.int32)
        # The three-dimensional kernel takes no activation; _finished adds relu as a bound.
        post, scalars = _POST_OPS["none" if layer.dims == 3 else layer.activation]
        out_scale, out_zero, out_type = (
            (layer.output.scale, layer.output.zero_point, torch.uint8) if layer.output else (1.0, 0, torch.float32)
        )
        given = (layer.input.scale, layer.input.zero_point)
        ops = torch.ops.onednn
        if layer.kind == "linear":
            packed = ops.qlinear_prepack(layer.weight.contiguous(), None)
            weights = (packed, layer.weight_scale, zero_points)
            linear = ops.qlinear_pointwise.default

            def run_linear(x: Tensor) -> Tensor:
                return linear(x, *given, *weights, layer.bias, out_scale, out_zero, out_type, post, scalars, "")  # type: ignore[no-any-return]

            return _finished(run_linear, layer)
        shape = [list(layer.stride), list(layer.padding), list(layer.dilation)]
        packed = ops.qconv_prepack(layer.weight.contiguous(), layer.weight_scale, *given, *shape, layer.groups, None)
        weights = (packed, layer.weight_scale, zero_points)
        if layer.accumulate is None:
            conv = ops.qconv_pointwise.default

            def run_conv(x: Tensor) -> Tensor:
                return conv(  # type: ignore[no-any-return]
                    x, *given, *weights, layer.bias, *shape, layer.groups, out_scale, out_zero, out_type, post, scalars, ""
                )

            return _finished(run_conv, layer)
        summed, added = ops.qconv2d_pointwise.binary, (layer.accumulate.scale, layer.accumulate.zero_point)

        def run_sum(x: Tensor, other: Tensor) -> Tensor:
            # The kernel adds into this tensor, and takes no slice and no other layout.
            other = other.contiguous(memory_format=torch.channels_last)
            return summed(  # type: ignore[no-any-return]
                x, *given, *weights, other, layer.bias, *shape, layer.groups, out_scale, out_zero, out_type, *added,
                "sum", 1.0, post, scalars, "",
            )  # fmt: skip

        return _finished(run_sum, layer)


class OneDNNThenTorch(OneDNN):
    """The same for activations that these kernels do not have inside: the layer's float result, which torch activates and rounds."""

    def label(self, layer: IntegerLayer) -> str:
        return f"{super().label(layer)}, then torch"

    def refuses(self, layer: IntegerLayer) -> str | None:
        if layer.accumulate:
            return f"no fused {layer.activation}"
        return super().refuses(replace(layer, output=None, activation="none"))

    def build(self, layer: IntegerLayer) -> LayerFunction:
        run, activation, output = super().build(replace(layer, output=None, activation="none")), ACTIVATIONS[layer.activation], layer.output
        if output is None:
            return lambda x: activation(run(x))
        return lambda x: quantize(activation(run(x)), output)


def _finished(run: LayerFunction, layer: IntegerLayer) -> LayerFunction:
    """Bounds that the kernel does not know: it saturates at 255, whatever the grid, and has no relu in three dimensions."""
    relu = layer.dims == 3 and layer.activation == "relu"
    if layer.output is None:
        return (lambda *tensors: run(*tensors).relu_()) if relu else run
    low, top = layer.output.zero_point if relu else 0, layer.output.qmax
    if low == 0 and top == 255:
        return run
    return lambda *tensors: run(*tensors).clamp_(low, top)
