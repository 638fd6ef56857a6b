"""Operations between layers, each in a tiny network: what ONNX Runtime computes is what the program computes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import nets
import pytest
import torch
import torch.nn.functional as F
from test_onnx import distance
from torch import Tensor, nn

from engine.export import openvino
from engine.export.onnx import file as onnx
from engine.kernels.probe import probe
from engine.tasks.base import Batch

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("openvino")

# From (N, 4, 6, 6) to anything of the same number of images.
OPERATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    # Activations.
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu tanh": lambda x: F.gelu(x, approximate="tanh"),
    "mish": F.mish,
    "elu": F.elu,
    "selu": F.selu,
    "celu": lambda x: F.celu(x, 1.3),
    "leaky": lambda x: F.leaky_relu(x, 0.2),
    "softplus": F.softplus,
    "softsign": F.softsign,
    "hardtanh": F.hardtanh,
    "hardsigmoid": F.hardsigmoid,
    "hardswish": F.hardswish,
    "relu6": F.relu6,
    "logsigmoid": F.logsigmoid,
    "tanhshrink": F.tanhshrink,
    "glu": lambda x: F.glu(x, 1),
    "threshold": lambda x: F.threshold(x, 0.1, 0.0),
    "softmin": lambda x: F.softmin(x, 1),
    # Assignments to a part.
    "slice scatter": lambda x: torch.slice_scatter(x, 2 * x[:, 1:3], 1, 1, 3),
    "slice scatter in steps": lambda x: torch.slice_scatter(x, -x[..., 1::2], 3, 1, None, 2),
    "slice scatter from the end": lambda x: torch.slice_scatter(x, x[:, :, :2].exp(), 2, -2),
    "slice scatter past the end": lambda x: torch.slice_scatter(x, x[:, :, 3:].exp(), 2, 3, 99),
    "select scatter": lambda x: torch.select_scatter(x, x[:, 0] + 1, 1, -1),
    "slice scatter of rows": lambda x: torch.slice_scatter(x.flatten(1), x.flatten(1)[:, :7] + 2, 1, 4, 11),
    # Arithmetic.
    "rsqrt": lambda x: (x.abs() + 1).rsqrt(),
    "square": torch.square,
    "pow": lambda x: x.abs() ** 1.5,
    "rpow": lambda x: 2**x,
    "div floor": lambda x: torch.div(x, 0.3, rounding_mode="floor"),
    "div trunc": lambda x: torch.div(x, 0.3, rounding_mode="trunc"),
    "rsub": lambda x: 1 - x,
    "clamp": lambda x: x.clamp(-0.2, 0.4),
    "clamp one side": lambda x: x.clamp(max=0.3),
    "clamp min": lambda x: x.clamp(min=0.1),
    "exp log": lambda x: torch.log(torch.exp(x) + 1),
    "log1p": lambda x: torch.log1p(x.abs()),
    "expm1": torch.expm1,
    "addcmul": lambda x: torch.addcmul(x, x, x, value=0.3),
    "sin cos": lambda x: torch.sin(x) + torch.cos(x),
    "maximum": lambda x: torch.maximum(x, -x),
    "fraction": torch.frac,
    "trunc": torch.trunc,
    "lerp": lambda x: torch.lerp(x, x.flip(3), 0.3),
    "where": lambda x: torch.where(x > 0, x, 0.1 * x),
    "compare": lambda x: x * (x >= 0.1) + x * (x < -0.1),
    "logical": lambda x: x.masked_fill((x > 0.2).logical_and((x > 0.5).logical_not()), 0.0),
    # Statistics.
    "mean": lambda x: x - x.mean((1, 2), keepdim=True),
    "variance": lambda x: x * torch.var(x, (2, 3), keepdim=True),
    "deviation": lambda x: x.std(1),
    "normalize": lambda x: F.normalize(x, dim=1),
    "norm 1": lambda x: x.norm(1, dim=2),
    "amin": lambda x: x.amin((2, 3)),
    "logsumexp": lambda x: torch.logsumexp(x, 1),
    "softmax": lambda x: x.flatten(2).softmax(-1),
    "sum": lambda x: x.sum(-1),
    "prod": lambda x: x.abs().prod(1),
    "cumsum": lambda x: x.cumsum(2),
    "layer norm": lambda x: F.layer_norm(x, (6, 6)),
    "group norm": lambda x: F.group_norm(x, 2),
    "instance norm": F.instance_norm,
    "instance norm with weights": lambda x: F.instance_norm(x, None, None, torch.arange(4.0), torch.ones(4)),
    "rms norm": lambda x: F.rms_norm(x, (6,)),
    "response norm": lambda x: F.local_response_norm(x, 3),
    # Shapes.
    "flip": lambda x: x.flip(2),
    "repeat": lambda x: x.repeat(1, 2, 1, 1),
    "roll": lambda x: torch.roll(x, (1, 2), (2, 3)),
    "roll all": lambda x: torch.roll(x.flatten(1), 3, 1),
    "stack": lambda x: torch.stack([x, -x], 2),
    "unbind": lambda x: torch.unbind(x, 1)[2],
    "chunk": lambda x: torch.chunk(x, 3, 2)[1],
    "narrow": lambda x: x.narrow(2, 1, 3),
    "pick": lambda x: x[:, [2, 0, 1]],
    "index select": lambda x: x.index_select(3, torch.tensor([4, 1])),
    "movedim": lambda x: x.movedim(1, -1),
    "interleave": lambda x: x.repeat_interleave(2, 1),
    "step": lambda x: x[:, :, ::2, 1::3],
    "negative": lambda x: x[:, -2:, :-1],
    "expand": lambda x: x.mean(1, keepdim=True).expand(-1, 3, -1, -1),
    "einsum": lambda x: torch.einsum("nchw,ndhw->ncd", x, x),
    "pad": lambda x: F.pad(x, (1, 0, 2, 1), value=0.5),
    "pad reflect": lambda x: F.pad(x, (1, 2, 2, 1), mode="reflect"),
    "pad replicate": lambda x: F.pad(x, (1, 2, 2, 1), mode="replicate"),
    "pixel shuffle": lambda x: F.pixel_shuffle(x, 2),
    "pixel unshuffle": lambda x: F.pixel_unshuffle(x, 2),
    "channel shuffle": lambda x: F.channel_shuffle(x, 2),
    "unfold": lambda x: F.unfold(x, 2, stride=2),
    "tril": lambda x: torch.tril(x),
    # Windows and sizes.
    "max pool": lambda x: F.max_pool2d(x, 3, 2, 1),
    "max pool ceil": lambda x: F.max_pool2d(x, 3, 2, ceil_mode=True),
    "average pool": lambda x: F.avg_pool2d(x, 3, 2, 1),
    "average pool outside": lambda x: F.avg_pool2d(x, 3, 2, 1, count_include_pad=False),
    "adaptive": lambda x: F.adaptive_avg_pool2d(x, (4, 5)),
    "adaptive max": lambda x: F.adaptive_max_pool2d(x, (3, 2)),
    "nearest": lambda x: F.interpolate(x, scale_factor=2),
    "bilinear": lambda x: F.interpolate(x, size=(9, 7), mode="bilinear"),
    "bilinear corners": lambda x: F.interpolate(x, size=(9, 7), mode="bilinear", align_corners=True),
    "bicubic": lambda x: F.interpolate(x, size=(9, 7), mode="bicubic"),
    "lp pool": lambda x: F.lp_pool2d(x, 2, 2),
    # Attention.
    "attention": lambda x: F.scaled_dot_product_attention(x, x, x),
    "attention scaled": lambda x: F.scaled_dot_product_attention(x, x, x, scale=0.7),
    "attention causal": lambda x: F.scaled_dot_product_attention(x, x, x, is_causal=True),
    "attention masked": lambda x: F.scaled_dot_product_attention(x, x, x, torch.ones(6, 6).tril().bool()),
    "matmul": lambda x: x @ x.transpose(2, 3),
}


# Where a value that is rounded to the other step jumps by one: with another operation in their place less than 5 dB are left.
JUMPS = ("fraction", "trunc")


class One(nn.Module):
    def __init__(self, operation: str) -> None:
        super().__init__()
        self.operation = operation
        self.conv = nn.Conv2d(3, 4, 3, 2, 0)
        self.pool = nn.AdaptiveAvgPool2d(6)
        with torch.no_grad():
            self.fc = nn.Linear(OPERATIONS[operation](torch.ones(2, 4, 6, 6)).flatten(1).shape[1], 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(OPERATIONS[self.operation](self.conv(x)[:, :, :6, :6]).flatten(1))


@pytest.mark.parametrize("operation", OPERATIONS)
def test_onnx_runtime_and_openvino_compute_what_the_program_does(operation: str, tmp_path: Path) -> None:
    given = nets.quantized(lambda: One(operation))
    # A value between two steps may be rounded to either: with a bit less the step is 6 dB larger.
    least = 25 - 6 * (8 - probe().activation_bits) - (8 if operation in JUMPS else 0)
    for form, name in ((onnx, "model.onnx"), (openvino, "model.xml")):
        form.write(given, tmp_path / name)
        runner = form.load(tmp_path / name, given)
        for count in (1, 4):
            x = torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(count))
            assert distance(given.model(x), runner.run(Batch((x,)))) > least, name


class Tiny(nn.Module):
    """Layers whose inputs are so small that their biases are beyond 32 bits of the products."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.head = {"conv": nn.Conv2d(4, 5, 1), "grouped": nn.Conv2d(4, 8, 1, groups=2), "linear": nn.Linear(4, 5)}[kind]

    def forward(self, x: Tensor) -> Tensor:
        x = F.instance_norm(self.conv(x)).mean((2, 3), keepdim=True)
        return self.head(x if isinstance(self.head, nn.Conv2d) else x.flatten(1)).flatten(1)


@pytest.mark.parametrize("kind", ["conv", "grouped", "linear"])
def test_a_bias_that_is_far_larger_than_the_products_is_not_lost(kind: str, tmp_path: Path) -> None:
    given = nets.quantized(lambda: Tiny(kind))
    for form, name in ((onnx, "model.onnx"), (openvino, "model.xml")):
        form.write(given, tmp_path / name)
        x = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
        assert distance(given.model(x), form.load(tmp_path / name, given).run(Batch((x,)))) > 25, name


class Ends(nn.Module):
    """Ends in a convolution, whose largest value is far beyond those of most images."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.last = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.interpolate(self.last(F.relu(self.conv(x))), scale_factor=2).amax((2, 3))


def test_a_last_convolution_is_neither_rounded_nor_cut_off_in_a_file(tmp_path: Path) -> None:
    given = nets.quantized(Ends)
    # Three times what calibration saw: the first layer cuts off, in the file as in the program.
    x = 3 * torch.randn(16, 3, 16, 16, generator=torch.Generator().manual_seed(7))
    for form, name in ((onnx, "model.onnx"), (openvino, "model.xml")):
        form.write(given, tmp_path / name)
        # With a grid of eight bits some 35 dB would be left.
        assert distance(given.model(x), form.load(tmp_path / name, given).run(Batch((x,)))) > 60, name


@pytest.mark.parametrize(("unit", "inside"), [(0.1, True), (2.0, False)])
def test_a_bias_that_the_products_units_would_move_is_added_behind_the_layer(unit: float, inside: bool) -> None:
    from engine.export.onnx.graph import Graph
    from engine.export.onnx.weights import bias

    values = torch.tensor([0.31, -0.47])
    found = bias(Graph("net"), values, torch.full((2,), unit), 1.0, 1.0, "layer")
    assert (found is not None) is inside
    # Where the unit is a divisor of the values nothing is moved.
    assert bias(Graph("net"), torch.tensor([2.0, -4.0]), torch.full((2,), 2.0), 1.0, 1.0, "layer") is not None
