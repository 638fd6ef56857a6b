"""Each operation in floating point alone, translated and run in ONNX Runtime: nothing is rounded, so that torch's result is the one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import nets
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.errors import EngineError
from engine.export.onnx import file as onnx
from engine.export.onnx.aten import BATCHES, translate
from engine.export.onnx.graph import Batch, Graph, Value, dims

pytest.importorskip("onnx")
runtime = pytest.importorskip("onnxruntime")

SIZES = (4, 6, 6)
torch.manual_seed(0)
LSTM, GRU = nn.LSTM(4, 6, batch_first=True, bidirectional=True).eval(), nn.GRU(4, 6, batch_first=True).eval()


def _assigned(x: Tensor) -> Tensor:
    y = torch.empty_like(x).fill_(0.5)
    return y + x


# From (N, 4, 6, 6) to anything of the same number of images.
OPERATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    # One and three dimensions.
    "max pool of rows": lambda x: F.max_pool1d(x.flatten(2), 3, 2, 1),
    "max pool of rows, over the end": lambda x: F.max_pool1d(x.flatten(2), 3, 2, ceil_mode=True),
    "average pool of rows": lambda x: F.avg_pool1d(x.flatten(2), 3, 2, 1),
    "adaptive pool of rows": lambda x: F.adaptive_avg_pool1d(x.flatten(2), 5),
    "adaptive maxima of rows": lambda x: F.adaptive_max_pool1d(x.flatten(2), 5),
    "adaptive pool of volumes": lambda x: F.adaptive_avg_pool3d(x.unsqueeze(1), (3, 2, 4)),
    "convolution of volumes": lambda x: F.conv3d(x.unsqueeze(1), torch.linspace(-1, 1, 36).reshape(2, 1, 2, 3, 3)),
    # Sizes.
    "antialiased": lambda x: F.interpolate(x, size=(4, 9), mode="bilinear", antialias=True),
    "antialiased, cubic": lambda x: F.interpolate(x, size=(4, 9), mode="bicubic", antialias=True),
    "antialiased, corners": lambda x: F.interpolate(x, size=(4, 9), mode="bilinear", antialias=True, align_corners=True),
    "nearest": lambda x: F.interpolate(x, size=(4, 11)),
    "nearest of rows": lambda x: F.interpolate(x.flatten(2), size=50),
    "nearest of volumes": lambda x: F.interpolate(x.unsqueeze(1), size=(3, 7, 9)),
    "nearest by a scale": lambda x: F.interpolate(x, scale_factor=1.7),
    "bilinear by a scale": lambda x: F.interpolate(x, scale_factor=1.7, mode="bilinear"),
    "bicubic by a scale": lambda x: F.interpolate(x, scale_factor=0.7, mode="bicubic"),
    "linear": lambda x: F.interpolate(x.flatten(2), size=50, mode="linear"),
    "trilinear": lambda x: F.interpolate(x.unsqueeze(1), size=(3, 4, 9), mode="trilinear", align_corners=True),
    "padded around": lambda x: F.pad(x.flatten(2), (1, 2), mode="reflect"),
    # Types of numbers.
    "integers as factors": lambda x: x * (x.mean((1, 2, 3), keepdim=True) > 0).long(),
    "arithmetic of integers": lambda x: x * ((x * 3).long() * 2 + 1),
    "integers divided": lambda x: x * ((x * 7).long() // 2),
    "integers divided towards zero": lambda x: x * torch.div((x * 7).long(), 2, rounding_mode="trunc"),
    "integers and numbers divided": lambda x: (x * 7).long() / 2,
    "remainder of integers": lambda x: x * ((x * 7).long() % 3),
    "remainder": lambda x: torch.remainder(x, 0.3),
    "a constant of integers": lambda x: x + torch.arange(6),
    "how many": lambda x: x * (x > 0).sum((1, 2, 3), keepdim=True),
    "how much of truth": lambda x: (x > 0).float().mean((1, 2, 3), keepdim=True) * x,
    "any": lambda x: x * (x > 1).any(1, keepdim=True),
    "all": lambda x: x * (x > -1).all(1, keepdim=True),
    "integers compared": lambda x: x * ((x * 2).long() > 1),
    "integers chosen": lambda x: torch.where(x > 0, 1, x),
    "in double": lambda x: x.double().mean((2, 3)).float(),
    "finite": lambda x: x * torch.isfinite(x),
    "embedded": lambda x: F.embedding((x.mean((2, 3)).clamp(-1, 1) * 2 + 2).long(), torch.arange(20.0).reshape(5, 4) / 10),
    # Places.
    "place of the largest": lambda x: x + x.mean((2, 3)).argmax(1)[:, None, None, None],
    "place of the smallest": lambda x: x + x.mean((2, 3)).argmin(1, keepdim=True)[:, :, None, None],
    "largest and its place": lambda x: x.max(2)[0] + x.max(2)[1],
    "the largest three": lambda x: x.flatten(2).topk(3, -1)[0],
    "places of the largest two": lambda x: x.mean((2, 3)).topk(2, 1)[1].float(),
    "in order": lambda x: x.sort(2, descending=True)[0],
    "gathered": lambda x: x.flatten(2).gather(2, x.flatten(2).argmax(2, keepdim=True)),
    "windows": lambda x: x.unfold(2, 3, 1).unfold(3, 2, 2).flatten(1),
    "by strides": lambda x: x.contiguous().as_strided((x.shape[0], 4, 3, 3), (144, 36, 12, 2)),
    "diagonal": lambda x: x.diagonal(1, 2, 3),
    # Functions.
    "leak of a random slope": lambda x: F.rrelu(x, 0.1, 0.3),
    "arcus tangens": torch.atan,
    "arcus tangens of two": lambda x: torch.atan2(x, x.flip(1)),
    "hyperbolic": lambda x: torch.sinh(x) + torch.cosh(x) + torch.asinh(x),
    "logarithms": lambda x: torch.log2(x.abs() + 1) + torch.log10(x.abs() + 1) + torch.exp2(x),
    "logarithm of a sum": lambda x: torch.logaddexp(x, -x),
    "hypotenuse": lambda x: torch.hypot(x, x + 1),
    "variance and mean": lambda x: torch.add(*torch.var_mean(x, 1)),
    "a scaled product": lambda x: torch.addmm(torch.ones(3), x.flatten(1), torch.ones(144, 3) * 0.01, beta=2, alpha=0.5),
    "scaled products": lambda x: torch.baddbmm(x.flatten(2), x.flatten(2)[:, :, :4], x.flatten(2)[:, :4], beta=0.5),
    "memory that is filled": _assigned,
    "zeros of another size": lambda x: torch.cat([x, x.new_zeros(x.shape[0], 1, 6, 6), x.new_full((x.shape[0], 1, 6, 6), 0.7)], 1),
    # Fourier transforms.
    "short time": lambda x: torch.stft(x.flatten(1), 32, 8, window=torch.hann_window(32), return_complex=True).abs(),
    "short time, as pairs": lambda x: torch.view_as_real(
        torch.stft(x.flatten(1), 16, 8, window=torch.ones(16), return_complex=True, center=False, normalized=True)
    ),
    "short time, both sides": lambda x: torch.stft(x.flatten(1), 16, 8, window=torch.ones(16), return_complex=True, onesided=False).real,
    "short time, moved": lambda x: torch.stft(
        x.flatten(1), 16, 8, window=torch.ones(16), return_complex=True
    ).transpose(1, 2)[:, :3].imag,
    "joined to nothing": lambda x: torch.cat([torch.tensor([]), x], -2),
    "transform of rows": lambda x: torch.fft.rfft(x).abs(),
    "transform of images": lambda x: torch.fft.rfft2(x, norm="ortho").real,
    "complex transform": lambda x: torch.fft.fft2(x, dim=(1, 2)).real,
    "transform and back": lambda x: torch.fft.irfft(torch.fft.rfft(x.flatten(2)) * torch.linspace(0, 1, 19)),
    "transform and back, odd": lambda x: torch.fft.irfft(torch.fft.rfft(x.flatten(2)[:, :, :35]), 35),
    "mixed by transforms": lambda x: torch.fft.fft(torch.fft.fft(x.flatten(2), dim=-1), dim=-2).real,
    "filtered": lambda x: torch.fft.irfft2(torch.fft.rfft2(x) * torch.fft.rfft2(torch.ones(4, 6, 6).tril())),
    # Recurrent layers.
    "recurrent with two gates and a cell": lambda x: LSTM(x.flatten(2).transpose(1, 2))[0],
    "recurrent with gates": lambda x: GRU(x.flatten(2).transpose(1, 2))[0],
}  # fmt: skip


def translated(run: Callable[..., Any]) -> Any:
    graph = Graph(144)
    pairs = [tuple(torch.randn(count, *SIZES) for count in BATCHES)]
    given = Value("images", (Batch(), *SIZES))
    with torch.no_grad():
        made = translate(graph, run, pairs, [given], "made", "made")
        shape = dims(run(pairs[0][0]).shape, run(pairs[0][1]).shape, BATCHES)
    model = graph.model((given,), (Value("logits", shape, None, made.kind),), (graph.read(made),), {})
    return runtime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


@pytest.mark.filterwarnings("ignore:A window was not provided", "ignore:Casting complex values")
@pytest.mark.parametrize("name", OPERATIONS)
def test_onnx_runtime_computes_what_torch_does(name: str) -> None:
    session = translated(OPERATIONS[name])
    for count in (1, 4):
        x = torch.randn(count, *SIZES, generator=torch.Generator().manual_seed(count))
        with torch.no_grad():
            wanted = OPERATIONS[name](x.clone())
        (got,) = session.run(None, {"images": x.numpy()})
        assert got.shape == tuple(wanted.shape)
        np.testing.assert_allclose(got, wanted.numpy(), atol=2e-5 * max(1.0, float(wanted.abs().max())), rtol=1e-5)


OF_LENGTHS: dict[str, Callable[[Tensor], Tensor]] = {
    "causal attention": lambda x: F.scaled_dot_product_attention(x, x, x, is_causal=True),
    "causal attention to less": lambda x: F.scaled_dot_product_attention(x, x[:, :2], x[:, :2], is_causal=True),
    "places from two": lambda x: x + torch.arange(2, 2 + x.shape[1])[:, None],
    "places in threes": lambda x: x * torch.arange(1, 1 + 3 * x.shape[1], 3)[:, None],
    "divided by the length": lambda x: x.sum(1) / x.shape[1],
    "less than the length": lambda x: x * (x.abs() * 4 < x.shape[1]),
    "multiplied by twice the length": lambda x: x * (2 * x.shape[1]),
}


@pytest.mark.parametrize("name", OF_LENGTHS)
def test_what_a_length_gives_is_computed_for_every_length(name: str) -> None:
    run = OF_LENGTHS[name]
    graph = Graph(144, "x", ("x", "made"), (BATCHES, (5, 7)), ("x",))
    examples = [torch.randn(count, length, 4) for count, length in zip(BATCHES, (5, 7), strict=True)]
    given = Value("x", (Batch(), Batch(1, (1,)), 4))
    result = translate(graph, run, [tuple(examples)], [given], "result", "result")
    shape = dims(run(examples[0]).shape, run(examples[1]).shape, *graph.sizes)
    model = graph.model((given,), (Value("made", shape),), (graph.read(result),), {})
    session = runtime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    for count, length in ((1, 3), (4, 9)):
        x = torch.randn(count, length, 4)
        (got,) = session.run(None, {"x": x.numpy()})
        np.testing.assert_allclose(got, run(x).numpy(), atol=1e-5, rtol=1e-5)


def test_a_number_that_is_no_multiple_of_a_length_is_refused_in_a_line() -> None:
    graph = Graph(144, "x", ("x", "made"), (BATCHES, (5, 7)), ("x",))
    examples = tuple(torch.randn(count, length, 4) for count, length in zip(BATCHES, (5, 7), strict=True))
    with pytest.raises(EngineError, match="scaled cannot be written as ONNX"):
        translate(graph, lambda x: x * x.shape[1] ** -0.5, [examples], [Value("x", (Batch(), Batch(1, (1,)), 4))], "scaled", "scaled")


class Squeezed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.conv(x).mean((2, 3))).squeeze()


def test_a_result_of_another_rank_for_one_item_is_said(tmp_path: Path) -> None:
    said = onnx.write(nets.quantized(Squeezed), tmp_path / "model.onnx")
    assert said == "for one item the model returns (5,) and this file (1, 5): squeeze() drops the batch there"
    assert onnx.write(nets.quantized(nets.Residual), tmp_path / "model.onnx") == ""
