"""The last resort: the same integers, computed in floating point. It tells the error, never the speed."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.kernels.base import ACTIVATIONS, CONVOLUTIONS, IntegerLayer, LayerFunction
from engine.numerics.qparams import dequantize, quantize


class Simulate:
    """Integer values held in float32; runs on any device."""

    name = "simulation"
    simulated = True

    def label(self, layer: IntegerLayer) -> str:
        return "simulation"

    def refuses(self, layer: IntegerLayer) -> str | None:
        return None

    def steps(self) -> None:
        return None

    def build(self, layer: IntegerLayer) -> LayerFunction:
        weight = layer.weight.to(torch.float32)
        step = layer.weight_scale * layer.input.scale
        zero = float(layer.input.zero_point)

        def run(x: Tensor, other: Tensor | None = None) -> Tensor:
            values = x.to(torch.float32) - zero
            if layer.kind == "linear":
                y = F.linear(values, weight) * step
                y = y if layer.bias is None else y + layer.bias
            else:
                channel = (-1, *[1] * layer.dims)
                y = CONVOLUTIONS[layer.dims](values, weight, None, layer.stride, layer.padding, layer.dilation, layer.groups)
                y = y * step.reshape(channel)
                y = y if layer.bias is None else y + layer.bias.reshape(channel)
            if other is not None and layer.accumulate is not None:
                y = y + dequantize(other, layer.accumulate)
            if layer.activation != "none":
                y = ACTIVATIONS[layer.activation](y)
            return y if layer.output is None else quantize(y, layer.output)

        return run
