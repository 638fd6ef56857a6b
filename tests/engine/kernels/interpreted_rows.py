"""The kernels of Triton and what is built on them, interpreted on the processor; prints ``right``. A test runs it in a process of its
own: how Triton's functions run is settled when they are imported."""

from __future__ import annotations

import os

os.environ["TRITON_INTERPRET"] = "1"

import torch

from engine.kernels.gpu.probe_child import _few_rows
from engine.kernels.matrix.int_mm import ScaledSums
from engine.kernels.matrix.on_gpu import _Int4, _Int8
from engine.numerics.qparams import QParams
from engine.numerics.qtensor import QTensor
from engine.numerics.scheme import WeightScheme, int_scheme
from engine.numerics.weights import minmax, quantize

SPECS = [int_scheme(4, 64, False), int_scheme(4, 0, True), int_scheme(3, 32, True), int_scheme(3, 128, False), int_scheme(2, 64, False)]


def weight(out: int, given: int, spec: WeightScheme) -> QTensor:
    floats = torch.randn(out, given, generator=torch.Generator().manual_seed(out))
    return quantize(floats, minmax(floats, spec))


def close(got: torch.Tensor, x: torch.Tensor, matrix: torch.Tensor, bias: torch.Tensor, most: float) -> None:
    exact = x.double() @ matrix.double().T + bias.double()
    assert got.dtype == torch.float32 and got.shape == exact.shape
    assert float((got.double() - exact).norm() / exact.norm()) < most, (tuple(x.shape), most)


def main() -> None:
    for rows in (1, 7):
        assert _few_rows("cpu", rows) is None, _few_rows("cpu", rows)
    draw = torch.Generator().manual_seed(1)
    # Three rows are few; twenty are a prompt, which is computed in bfloat16.
    for rows, most in ((3, 1e-6), (20, 0.01)):
        for out, given in ((70, 128), (5, 384)):
            x, bias = torch.randn(2, rows // 2 + 1, given, generator=draw)[:, : (rows + 1) // 2], torch.randn(out, generator=draw)
            for spec in SPECS:
                held = weight(out, given, spec)
                close(_Int4(held, bias, "cpu")(x), x, held.dequantize(), bias, most)
        held = weight(70, 100, int_scheme(8, 0, True))
        x, bias = torch.randn(rows, 100, generator=draw), torch.randn(70, generator=draw)
        close(_Int8(held.codes, held.scale[:, 0].float(), bias, "cpu")(x), x, held.dequantize(), bias, most)
        grid = QParams(0.031, 120)
        seen = ((x / grid.scale).round() + grid.zero_point).clamp(0, grid.qmax).sub(grid.zero_point) * grid.scale
        close(ScaledSums(held, bias, grid, "cpu", few=True)(x), seen, held.dequantize(), bias, 1e-5)
        step = x.abs().amax(1, keepdim=True) / 127
        close(ScaledSums(held, bias, 8, "cpu", few=True)(x), (x / step).round() * step, held.dequantize(), bias, 1e-5)
    print("right")


if __name__ == "__main__":
    main()
