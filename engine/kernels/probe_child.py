"""Runs inside the probe's child process: prints one JSON object a line, each as soon as it is known."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.errors import one_line
from engine.kernels.base import ACTIVATIONS, IntegerLayer, Kernel, Steps
from engine.kernels.dnnl.layers import Direct
from engine.kernels.probe import FAMILIES
from engine.kernels.x86_int8 import OneDNN
from engine.numerics.qparams import QParams, dequantize, quantize


def main(families: Sequence[str]) -> None:
    _say(isa=torch.backends.cpu.get_cpu_capability(), vnni=_vnni())
    for family in families:
        kernel: Kernel = Direct() if family == "dnnl" else OneDNN()
        checks: list[Callable[[], str | None]] = [partial(check, kernel) for check in (_conv, _conv_sum, _linear)]
        if family == "dnnl":
            checks.append(_steps)
        for name, check in zip(FAMILIES[family], checks, strict=True):
            try:
                error = check()
            except Exception as problem:
                error = one_line(problem) or type(problem).__name__
            _say(kernel=name, error=error)
        _say(saturates=_saturates(kernel))


def _say(**fields: object) -> None:
    print(json.dumps(fields), flush=True)


def _vnni() -> bool:
    supported: Callable[[], bool] | None = getattr(torch.cpu, "_is_vnni_supported", None)
    return bool(supported()) if supported else False


def _conv(kernel: Kernel) -> str | None:
    layer = _layer("conv", (8, 16, 3, 3), activation="relu", stride=(2, 2), padding=(1, 1), dilation=(1, 1))
    x = _integers((2, 16, 9, 9)).to(memory_format=torch.channels_last)
    exact = F.conv2d(dequantize(x, layer.input).double(), _weights(layer), layer.bias.double(), 2, 1)  # type: ignore[union-attr]
    return _compare(kernel.build(layer)(x), exact.relu(), layer) or _activated(kernel, layer, x, exact)


def _conv_sum(kernel: Kernel) -> str | None:
    layer = _layer(
        "conv", (8, 16, 3, 3), activation="relu", accumulate=QParams(0.03, 7, 127), stride=(1, 1), padding=(1, 1), dilation=(1, 1)
    )
    x = _integers((2, 16, 9, 9)).to(memory_format=torch.channels_last)
    other = _integers((2, 8, 9, 9)).to(memory_format=torch.channels_last)
    exact = F.conv2d(dequantize(x, layer.input).double(), _weights(layer), layer.bias.double(), 1, 1)  # type: ignore[union-attr]
    exact = (exact + dequantize(other, layer.accumulate).double()).relu()  # type: ignore[arg-type]
    return _compare(kernel.build(layer)(x, other.clone(memory_format=torch.preserve_format)), exact, layer)


def _linear(kernel: Kernel) -> str | None:
    layer = _layer("linear", (8, 64), activation="relu")
    x = _integers((3, 64))
    exact = F.linear(dequantize(x, layer.input).double(), _weights(layer), layer.bias.double())  # type: ignore[union-attr]
    return _compare(kernel.build(layer)(x), exact.relu(), layer) or _activated(kernel, layer, x, exact)


def _activated(kernel: Kernel, layer: IntegerLayer, x: Tensor, exact: Tensor) -> str | None:
    """``layer`` with each activation that the kernel has, on a grid of 255 and of 127 steps; ``exact`` is its result without."""
    for name, grid in product(ACTIVATIONS, (QParams(0.03, 40), QParams(0.06, 20, 127))):
        given = replace(layer, activation=name, output=grid)
        if kernel.refuses(given) is None and (wrong := _compare(kernel.build(given)(x), ACTIVATIONS[name](exact), given)):
            return f"{wrong} with {name}"
    return None


def _steps() -> str | None:
    """Quantizing, pooling, a sum and a mean, against exact arithmetic."""
    steps, left, right, target = Direct().steps(), QParams(0.02, 11), QParams(0.03, 7), QParams(0.05, 9)
    x, y = (_integers((2, 8, 6, 6)).to(memory_format=torch.channels_last) for _ in range(2))
    a, b = dequantize(x, left).double(), dequantize(y, right).double()
    pool = (2, 2), (2, 2), (0, 0), (1, 1)
    cases = [
        (steps.quantize(target, False, _never), (a.float(),), quantize(a, target)),
        (steps.max_pool(*pool, _never), (x,), F.max_pool2d(x.float(), 2)),
        (steps.add(left, right, target, True, _never), (x, y), quantize((a + b).relu(), target)),
        (steps.mean(left, target, False, _never), (x,), quantize(a.mean((2, 3), keepdim=True), target)),
    ]
    for step, inputs, exact in cases:
        assert step is not None
        off = (step(*inputs).int() - exact.int()).abs().max().item()
        if off > 1:
            return f"off by {off} steps"
    return _layouts(steps) or _flat(steps) or _per_channel(steps)


def _flat(steps: Steps) -> str | None:
    """Quantizing dense tensors as they lie, also to grids that end before a byte does."""
    for shape, top in product(((3, 5), (2, 7, 33), (1, 5, 9, 24), (1025,)), (15, 127, 255)):
        for x in (torch.randn(shape, generator=torch.Generator().manual_seed(2)), torch.randn(shape).transpose(0, -1)):
            grid = QParams(0.021, top // 3, top)
            function = steps.quantize(grid, True, _never)
            assert function is not None
            off = (function(x).int() - quantize(x.double(), grid).int()).abs().max().item()
            if off > 1:
                return f"off by {off} steps on a dense tensor {shape} with {top} steps"
    return None


def _per_channel(steps: Steps) -> str | None:
    """A factor and a shift for each channel, and a gate, over layouts, zero points, sizes and grids."""
    for (n, c, h, w), zero, top in product(((1, 18, 8, 8), (2, 33, 7, 5), (3, 8, 1, 1), (1, 1, 16, 32)), (0, 114), (127, 255)):
        draw = torch.Generator().manual_seed(c)
        one, gates, target = QParams(0.02, zero), QParams(1 / 255, zero // 2), QParams(0.017, top // 4, top)
        factor, shift = torch.randn(c, generator=draw), torch.randn(c, generator=draw)
        by = torch.randint(0, 256, (n, c, 1, 1), generator=draw, dtype=torch.uint8)
        for name, x in _ways(n, c, h, w).items():
            real = dequantize(x, one).double()
            moved = real * factor.double()[:, None, None] + shift.double()[:, None, None]
            cases = [
                (steps.affine(factor, shift, one, target, False, _never), (x,), moved),
                (steps.affine(factor, shift, one, target, True, _never), (x,), moved.relu()),
                (steps.gate(one, gates, target, _never), (x, by), real * dequantize(by, gates).double()),
                (steps.mean(one, target, False, _never), (x,), real.mean((2, 3), keepdim=True)),
                (steps.add(one, one, target, True, _never), (x, x), (real + real).relu()),
            ]
            for function, inputs, exact in cases:
                assert function is not None
                off = (function(*inputs).int() - quantize(exact, target).int()).abs().max().item()
                if off > 1:
                    return f"off by {off} steps on a {name} tensor {(n, c, h, w)} with zero point {zero} and {top} steps"
    return None


def _layouts(steps: Steps) -> str | None:
    """Quantizing, a sum, a pooling and a mean of tensors in other layouts and of odd sizes, with other zero points."""
    for (n, c, h, w), zero in product(((1, 18, 8, 8), (2, 33, 7, 5), (1, 1, 16, 32)), (0, 114, 255)):
        grid, one = QParams(0.031, zero), QParams(0.02, 255 - zero)
        functions = (
            steps.quantize(grid, False, _never), steps.add(one, grid, grid, False, _never), steps.mean(one, grid, False, _never),
            steps.max_pool((2, 2), (1, 1), (0, 0), (1, 1), _never),
        )  # fmt: skip
        for name, x in _ways(n, c, h, w).items():
            real = x.double() / 10 - 6
            exact = (
                quantize(real, grid), quantize(dequantize(x, one).double() + dequantize(x, grid).double(), grid),
                quantize(dequantize(x, one).double().mean((2, 3), keepdim=True), grid), F.max_pool2d(x.float(), 2, 1),
            )  # fmt: skip
            for function, inputs, wanted in zip(functions, ((real.float(),), (x, x), (x,), (x,)), exact, strict=True):
                assert function is not None
                off = (function(*inputs).int() - wanted.int()).abs().max().item()
                if off > 1:
                    return f"off by {off} steps on a {name} tensor {(n, c, h, w)} with zero point {zero}"
    return None


def _ways(n: int, c: int, h: int, w: int) -> dict[str, Tensor]:
    """uint8 tensors (n, c, h, w) by their layout."""
    return {
        "contiguous": _integers((n, c, h, w)),
        "channels-last": _integers((n, c, h, w)).contiguous(memory_format=torch.channels_last),
        "transposed": _integers((n, c, w, h)).transpose(2, 3),
        "sliced": _integers((n, c + 3, h, 2 * w))[:, 1 : c + 1, :, ::2],
        "expanded": _integers((1, 1, h, 1)).expand(n, c, h, w),
    }


def _never(*_: Tensor) -> Tensor:
    raise NotImplementedError("a step between layers is not implemented")


def _saturates(kernel: Kernel) -> bool | None:
    """Largest activations times largest weights: exact only where no 16-bit sum is in between."""
    try:
        layer = IntegerLayer("linear", torch.full((16, 512), 127, dtype=torch.int8), torch.ones(16), None, QParams(1.0, 0), None)
        got = kernel.build(layer)(torch.full((4, 512), 255, dtype=torch.uint8))
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
