"""oneDNN and simulation against exact arithmetic in float64, within one step of the output's grid.

Activations stay below 128: with those, no instruction set saturates.
"""

import itertools

import pytest
import torch
import torch.nn.functional as F

from engine.kernels.base import IntegerLayer, geometry
from engine.kernels.dnnl.layers import Direct
from engine.kernels.dnnl.library import path
from engine.kernels.simulate import Simulate
from engine.kernels.x86_int8 import OneDNN, OneDNNThenTorch
from engine.numerics.qparams import QParams

needs_onednn = pytest.mark.skipif(not hasattr(torch.ops.onednn, "qconv_pointwise"), reason="torch without oneDNN's integer operations")
needs_dnnl = pytest.mark.skipif(path() is None, reason="onednn-cpu-gomp is not installed")
KERNELS = [
    pytest.param(Direct(), marks=needs_dnnl, id="dnnl"),
    pytest.param(OneDNN(), marks=needs_onednn, id="onednn"),
    pytest.param(OneDNNThenTorch(), marks=needs_onednn, id="onednn then torch"),
    pytest.param(Simulate(), id="simulate"),
]
CONVOLUTIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
INPUT = QParams(0.021, 37, 127)
OTHER = QParams(0.033, 59, 127)
OUTPUTS = [QParams(0.047, 90), QParams(0.09, 40, 127), QParams(0.7, 5, 15), None]
ACTIVATIONS = {
    "none": lambda y: y,
    "relu": lambda y: y.clamp(min=0),
    "relu6": lambda y: y.clamp(0, 6),
    "hardswish": lambda y: y * (y + 3).clamp(0, 6) / 6,
    "silu": lambda y: y / (1 + torch.exp(-y)),
    "gelu": lambda y: y / 2 * (1 + torch.erf(y / 2**0.5)),
    "gelu_tanh": lambda y: y / 2 * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (y + 0.044715 * y**3))),
    "sigmoid": lambda y: 1 / (1 + torch.exp(-y)),
    "hardsigmoid": lambda y: (y + 3).clamp(0, 6) / 6,
    "tanh": torch.tanh,
    "mish": lambda y: y * torch.tanh(torch.log1p(torch.exp(y))),
}


def integers(*shape, seed=0, top=128):
    return torch.randint(0, top, shape, generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def layer(kind, shape, output=OUTPUTS[0], activation="none", accumulate=None, bias=True, **geometry):
    g = torch.Generator().manual_seed(7)
    weight = torch.randint(-128, 128, shape, generator=g).to(torch.int8)
    fan = weight[0].numel() ** 0.5
    scale = (torch.rand(shape[0], generator=g) + 0.5) * 0.02 / fan
    offset = torch.randn(shape[0], generator=g) if bias else None
    return IntegerLayer(kind, weight, scale, offset, INPUT, output, activation, accumulate, **geometry)


def conv(dims, channels=8, out=8, kernel=3, stride=1, padding=1, dilation=1, groups=1, **more):
    each = {"stride": (stride,) * dims, "padding": (padding,) * dims, "dilation": (dilation,) * dims, "groups": groups}
    return layer("conv", (out, channels // groups, *(kernel,) * dims), **each, **more)


def exact(given, x, other=None):
    """The real value before it is rounded to the output's grid."""
    values = (x.double() - INPUT.zero_point) * INPUT.scale
    bias = None if given.bias is None else given.bias.double()
    weight = given.weight.double() * given.weight_scale.double().reshape(-1, *[1] * (given.weight.dim() - 1))
    if given.kind == "linear":
        y = F.linear(values, weight, bias)
    else:
        y = CONVOLUTIONS[given.dims](values, weight, bias, given.stride, given.padding, given.dilation, given.groups)
    if other is not None:
        y = y + (other.double() - OTHER.zero_point) * OTHER.scale
    return ACTIVATIONS[given.activation](y)


def check(kernel, given, x, other=None):
    reason = kernel.refuses(given)
    if reason is not None:
        assert reason.strip()
        pytest.skip(f"{kernel.name}: {reason}")
    expected = exact(given, x, other)
    run = kernel.build(given)
    got = run(x) if other is None else run(x, other.clone())
    assert got.shape == expected.shape
    if given.output is None:
        assert got.dtype == torch.float32
        assert (got.double() - expected).abs().max() <= 1e-5 * max(1.0, expected.abs().max().item())
        return
    assert got.dtype == torch.uint8
    place = (expected / given.output.scale + given.output.zero_point).clamp(0, given.output.qmax)
    assert (got.double() - place).abs().max() <= 0.51
    assert got.max() <= given.output.qmax
    # The case is worth something only where the grid is used.
    assert got.unique().numel() > min(given.output.qmax, 30, got.numel() // 3) // 3


SHAPES = {
    "3x3": {},
    "1x1": {"kernel": 1, "padding": 0},
    "stride": {"stride": 2},
    "dilation": {"kernel": 5, "dilation": 2, "padding": 4},
    "groups": {"groups": 2},
    "depthwise": {"groups": 8},
    "depthwise stride": {"groups": 8, "stride": 2},
    "first": {"channels": 3, "kernel": 7, "padding": 3},
    "one channel": {"channels": 1},
    "odd channels": {"channels": 5, "out": 7},
    "no bias": {"bias": False},
    "wide": {"channels": 64, "out": 32},
}


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("shape", SHAPES)
def test_conv2d(kernel, shape, activation):
    given = conv(2, activation=activation, **SHAPES[shape])
    x = integers(2, given.weight.shape[1] * given.groups, 11, 9)
    check(kernel, given, x.to(memory_format=torch.channels_last))
    check(kernel, given, x)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(("dims", "activation"), list(itertools.product((1, 3), ACTIVATIONS)))
@pytest.mark.parametrize("shape", ["3x3", "stride", "groups", "depthwise", "no bias"])
def test_conv1d_and_conv3d(kernel, dims, activation, shape):
    given = conv(dims, activation=activation, **SHAPES[shape])
    check(kernel, given, integers(2, 8, *(7,) * dims))


def test_onednn_takes_1d_and_3d_convolutions_at_all():
    assert [OneDNN().refuses(conv(1)), OneDNN().refuses(conv(3)), OneDNN().refuses(conv(1, activation="relu"))] == [None] * 3


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(("output", "activation"), list(itertools.product(OUTPUTS, ["none", "relu"])))
def test_output_grids(kernel, output, activation):
    check(kernel, conv(2, output=output, activation=activation), integers(2, 8, 6, 6))
    check(kernel, layer("linear", (24, 40), output=output, activation=activation), integers(5, 40))


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(("output", "activation"), list(itertools.product(OUTPUTS[:3], ["none", "relu"])))
@pytest.mark.parametrize("shape", ["3x3", "1x1", "depthwise", "stride"])
def test_residual_sum(kernel, shape, output, activation):
    given = conv(2, output=output, activation=activation, accumulate=OTHER, **SHAPES[shape])
    x = integers(2, 8, 10, 10)
    size = exact(conv(2, **SHAPES[shape]), x).shape
    other = integers(*size, seed=5)
    check(kernel, given, x, other.to(memory_format=torch.channels_last))
    check(kernel, given, x.to(memory_format=torch.channels_last), other)
    # A slice of something larger, as an identity shortcut with a stride gives.
    larger = integers(2, 8, 2 * size[2], 2 * size[3], seed=6).to(memory_format=torch.channels_last)
    check(kernel, given, x, larger[:, :, ::2, ::2])


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("batch", [1, 3, 64])
def test_batches(kernel, batch):
    given = conv(2, activation="relu")
    run = kernel.build(given)
    x = integers(64, 8, 6, 6).to(memory_format=torch.channels_last)
    run(x[:2])  # Another batch first: nothing may be kept of it.
    check(kernel, given, x[:batch])
    assert torch.equal(run(x)[:batch], run(x[:batch]))
    check(kernel, layer("linear", (16, 32), activation="relu"), integers(batch, 32))


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("shape", [(3, 32), (1, 32), (2, 5, 32), (2, 3, 4, 32)])
@pytest.mark.parametrize(("output", "activation"), list(itertools.product([OUTPUTS[0], None], ["none", "relu", "hardswish"])))
@pytest.mark.parametrize("bias", [True, False])
def test_linear(kernel, shape, output, activation, bias):
    given = layer("linear", (17, 32), output=output, activation=activation, bias=bias)
    check(kernel, given, integers(*shape))
    check(kernel, given, integers(*shape[:-2], shape[-1], shape[-2]).transpose(-1, -2))


@needs_onednn
@pytest.mark.parametrize("activation", ["none", "relu"])
def test_simulation_and_onednn_agree_within_a_step(activation):
    for given, x in (
        (conv(2, activation=activation), integers(4, 8, 9, 9)),
        (layer("linear", (32, 64), activation=activation), integers(9, 64)),
    ):
        apart = OneDNN().build(given)(x).int() - Simulate().build(given)(x).int()
        assert apart.abs().max() <= 1


def test_simulation_leaves_its_operand_alone():
    other = integers(2, 8, 6, 6, seed=3)
    kept = other.clone()
    Simulate().build(conv(2, accumulate=OTHER))(integers(2, 8, 6, 6), other)
    assert torch.equal(other, kept)


def test_labels_and_refusals():
    kernel = OneDNN()
    assert kernel.label(conv(2)) == "onednn.qconv_pointwise"
    assert kernel.label(conv(2, accumulate=OTHER)) == "onednn.qconv2d_pointwise.binary"
    assert kernel.label(layer("linear", (4, 4))) == "onednn.qlinear_pointwise"
    assert not kernel.simulated
    assert Simulate().simulated
    assert kernel.refuses(conv(2, activation="gelu"))
    assert kernel.refuses(layer("linear", (4, 4), activation="relu6"))
    assert kernel.refuses(conv(2, accumulate=OTHER, output=None))
    assert kernel.refuses(conv(2, accumulate=OTHER, activation="relu6"))
    assert kernel.refuses(conv(1, accumulate=OTHER))
    assert Simulate().refuses(conv(3, activation="hardswish")) is None


@pytest.mark.parametrize("dilation", [1, 2])
def test_geometry_of_same_and_valid_padding(dilation):
    same = geometry(torch.nn.Conv2d(3, 4, (3, 5), padding="same", dilation=dilation))
    assert same == {"stride": (1, 1), "padding": (dilation, 2 * dilation), "dilation": (dilation, dilation), "groups": 1}
    assert geometry(torch.nn.Conv1d(3, 4, 4, padding="valid"))["padding"] == (0,)
    assert geometry(torch.nn.Linear(3, 4)) == {}


@pytest.mark.parametrize("more", [{"padding": "same"}, {"padding": 1, "padding_mode": "reflect"}])
def test_geometry_that_no_kernel_has(more):
    with pytest.raises(ValueError, match="padding"):
        geometry(torch.nn.Conv2d(3, 4, 4, **more))
