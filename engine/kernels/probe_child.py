"""Runs inside the probe's child process: prints one JSON object a line, each as soon as it is known."""

from __future__ import annotations

import json
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.errors import one_line
from engine.kernels.base import IntegerLayer
from engine.kernels.x86_int8 import OneDNN
from engine.quant.numerics import QParams, dequantize, quantize


def main() -> None:
    _say(isa=torch.backends.cpu.get_cpu_capability(), vnni=_vnni())
    for name, check in (("qconv_pointwise", _conv), ("qconv2d_pointwise.binary", _conv_sum), ("qlinear_pointwise", _linear)):
        try:
            error = check()
        except Exception as problem:
            error = one_line(problem) or type(problem).__name__
        _say(kernel=name, error=error)
    _say(saturates=_saturates())


def _say(**fields: object) -> None:
    print(json.dumps(fields), flush=True)


def _vnni() -> bool:
    supported: Callable[[], bool] | None = getattr(torch.cpu, "_is_vnni_supported", None)
    return bool(supported()) if supported else False


def _conv() -> str | None:
    layer = _layer("conv", (8, 16, 3, 3), activation="relu", stride=(2, 2), padding=(1, 1), dilation=(1, 1))
    x = _integers((2, 16, 9, 9)).to(memory_format=torch.channels_last)
    exact = F.conv2d(dequantize(x, layer.input).double(), _weights(layer), layer.bias.double(), 2, 1)  # type: ignore[union-attr]
    return _compare(OneDNN().build(layer)(x), exact.relu(), layer)


def _conv_sum() -> str | None:
    layer = _layer(
        "conv", (8, 16, 3, 3), activation="relu", accumulate=QParams(0.03, 7, 127), stride=(1, 1), padding=(1, 1), dilation=(1, 1)
    )
    x = _integers((2, 16, 9, 9)).to(memory_format=torch.channels_last)
    other = _integers((2, 8, 9, 9)).to(memory_format=torch.channels_last)
    exact = F.conv2d(dequantize(x, layer.input).double(), _weights(layer), layer.bias.double(), 1, 1)  # type: ignore[union-attr]
    exact = (exact + dequantize(other, layer.accumulate).double()).relu()  # type: ignore[arg-type]
    return _compare(OneDNN().build(layer)(x, other.clone(memory_format=torch.preserve_format)), exact, layer)


def _linear() -> str | None:
    layer = _layer("linear", (8, 64), activation="relu")
    x = _integers((3, 64))
    exact = F.linear(dequantize(x, layer.input).double(), _weights(layer), layer.bias.double()).relu()  # type: ignore[union-attr]
    return _compare(OneDNN().build(layer)(x), exact, layer)


def _saturates() -> bool | None:
    """Largest activations times largest weights: exact only where no 16-bit sum is in between."""
    try:
        layer = IntegerLayer("linear", torch.full((16, 512), 127, dtype=torch.int8), torch.ones(16), None, QParams(1.0, 0), None)
        got = OneDNN().build(layer)(torch.full((4, 512), 255, dtype=torch.uint8))
    except Exception:
        return None
    return bool((got != 255 * 127 * 512).any())


def _layer(kind: str, shape: tuple[int, ...], **more: object) -> IntegerLayer:
    g = torch.Generator().manual_seed(0)
    weight = torch.randint(-127, 128, shape, generator=g, dtype=torch.int8)
    scale = torch.rand(shape[0], generator=g) * 0.002 + 0.001
    return IntegerLayer(kind, weight, scale, torch.randn(shape[0], generator=g), QParams(0.02, 11, 127), QParams(0.05, 9), **more)  # type: ignore[arg-type]


def _weights(layer: IntegerLayer) -> Tensor:
    return layer.weight.double() * layer.weight_scale.double().reshape(-1, *[1] * (layer.weight.dim() - 1))


def _integers(shape: tuple[int, ...]) -> Tensor:
    return torch.randint(0, 128, shape, generator=torch.Generator().manual_seed(1), dtype=torch.uint8)


def _compare(got: Tensor, exact: Tensor, layer: IntegerLayer) -> str | None:
    assert layer.output is not None
    step = (got.int() - quantize(exact, layer.output).int()).abs().max().item()
    return None if step <= 1 else f"off by {step} steps"
