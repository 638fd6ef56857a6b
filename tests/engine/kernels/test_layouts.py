"""Every native step on a lattice of memory layouts, zero points, odd sizes, batches and threads, step by step and as a fixed
plan, against integer arithmetic and float64 written here.

A kernel that is right for one layout need not be right for the next: oneDNN's reorder from float32 to uint8 was not.
"""

import itertools
import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F

from engine.kernels.base import IntegerLayer
from engine.kernels.dnnl.layers import Direct
from engine.kernels.dnnl.library import path
from engine.kernels.simulate import Simulate
from engine.kernels.x86_int8 import OneDNN
from engine.lowering.graph.fixed import Fixing
from engine.lowering.graph.program import Program, Step, grid
from engine.lowering.graph.runtime import QuantizedModel
from engine.numerics.formats import integer
from engine.numerics.qparams import QParams
from engine.numerics.qtensor import QTensor

needs_onednn = pytest.mark.skipif(not hasattr(torch.ops.onednn, "qconv_pointwise"), reason="torch without oneDNN's integer operations")
needs_dnnl = pytest.mark.skipif(path() is None, reason="onednn-cpu-gomp is not installed")
KERNELS = [
    pytest.param(Direct(), marks=needs_dnnl, id="dnnl"),
    pytest.param(OneDNN(), marks=needs_onednn, id="onednn"),
    pytest.param(Simulate(), id="simulate"),
]
ZERO_POINTS = (0, 1, 114, 128, 255)
CHANNELS = (1, 3, 4, 16, 17, 18, 33)
SIZES = ((8, 8), (7, 5), (1, 64), (16, 32), (1, 1))
BATCHES = (1, 2, 7)
STEP = 0.031


@pytest.fixture(params=[1, 2], ids=["1 thread", "2 threads"])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def normal(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))) * 2


def numbers(*shape, top=256):
    return torch.randint(0, top, shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.uint8)


def layouts(make, n, c, h, w):
    """Tensors (n, c, h, w) by the name of their layout."""
    last = torch.channels_last
    return {
        "contiguous": make(n, c, h, w),
        "channels last": make(n, c, h, w).contiguous(memory_format=last),
        "transposed": make(n, c, w, h).transpose(2, 3),
        "channels last, transposed": make(n, c, w, h).contiguous(memory_format=last).transpose(2, 3),
        "channels and width": make(n, w, h, c).transpose(1, 3),
        "batch and channels": make(c, n, h, w).transpose(0, 1),
        "expanded from the batch": make(n, 1, 1, 1).expand(n, c, h, w),
        "expanded from the rows": make(1, 1, h, 1).expand(n, c, h, w),
        "expanded from the columns": make(1, 1, 1, w).expand(n, c, h, w),
        "expanded from the channels": make(1, c, 1, 1).expand(n, c, h, w),
        "expanded from one number": make(1, 1, 1, 1).expand(n, c, h, w),
        "one image expanded": make(1, c, h, w).expand(n, c, h, w),
        "slice of channels": make(n, c + 3, h, w)[:, 1 : c + 1],
        "every other channel": make(n, 2 * c, h, w)[:, ::2],
        "every other place": make(n, c, 2 * h, 2 * w)[:, :, ::2, 1::2],
        "slice of channels last": make(n, c + 3, h, w).contiguous(memory_format=last)[:, 1 : c + 1],
        "every other image": make(2 * n, c, h, w)[::2],
    }


def other_ranks(make):
    """Tensors of two, three and five dimensions."""
    return {
        "2-D": make(7, 18),
        "2-D transposed": make(18, 7).t(),
        "2-D sliced": make(14, 36)[::2, 1::2],
        "2-D expanded": make(1, 18).expand(7, 18),
        "3-D": make(2, 18, 9),
        "3-D transposed": make(2, 9, 18).transpose(1, 2),
        "3-D expanded": make(2, 1, 9).expand(2, 18, 9),
        "5-D": make(2, 5, 3, 4, 7),
        "5-D channels last": make(2, 5, 3, 4, 7).contiguous(memory_format=torch.channels_last_3d),
        "5-D transposed": make(2, 5, 7, 4, 3).transpose(2, 4),
        "5-D sliced": make(2, 5, 6, 4, 7)[:, :, ::2],
    }


def lattice(make, channels=CHANNELS, sizes=SIZES, batches=BATCHES):
    """Layouts of every size, by their name and shape."""
    for c, (h, w), n in itertools.product(channels, sizes, batches):
        for name, x in layouts(make, n, c, h, w).items():
            yield f"{name} {(n, c, h, w)}", x


def function_of(step, kernel=None, layers=None, tensors=None):
    """What the runtime makes of one step."""
    ((_, function),) = QuantizedModel(Program((step,), step.output, layers or {}, tensors or {}), [kernel or Direct()]).functions()
    return function


def both_ways(step, function, *inputs):
    """The step called, and the step tied to memory."""
    constants = [Step("constant", name) for name in step.inputs]
    held = [partial(torch.Tensor.clone, x) for x in inputs]
    called = function(*(x.clone() for x in inputs))
    fixed = Fixing([*constants, step], [*held, function], None, step.output).build(torch.empty(0))
    for run in fixed.run:
        run(torch.empty(0))
    return {"called": called, "tied": fixed.result}


def far(got, place, top=255):
    """Whether a uint8 result is not the exact ``place`` on its grid rounded."""
    return got.shape != place.shape or got.dtype != torch.uint8 or bool(((got.double() - place.clamp(0, top)).abs() > 0.51).any())


@needs_dnnl
@pytest.mark.parametrize("zero", ZERO_POINTS)
def test_quantizing_is_right_for_every_layout(zero, threads):
    step = Step("quantize", "y", ("x",), {"grid": [STEP, zero, 255]})
    function, wrong, count = function_of(step), [], 0
    some = lattice(normal) if threads == 1 else lattice(normal, (1, 18), ((16, 32),), (7,))
    for name, x in itertools.chain(some, other_ranks(normal).items()):
        if far(function(x), x.double() / torch.tensor(STEP).double() + zero):
            wrong.append(name)
        count += 1
    assert wrong == []
    assert count > 40


@needs_dnnl
@pytest.mark.parametrize("zero", ZERO_POINTS)
def test_quantizing_images_at_each_call_of_a_plan_is_right_for_every_layout(zero):
    step = Step("quantize", "y", ("x",), {"grid": [STEP, zero, 255]})
    function, wrong = function_of(step), []
    for name, x in lattice(normal, (1, 3, 18, 33), SIZES, (1, 2)):
        fixed = Fixing([step], [function], "x", "y").build(x)
        # The plan is made for one tensor and given another of its layout.
        given = torch.empty_strided(x.shape, x.stride()) if 0 not in x.stride() else x
        given = given if given is x else given.copy_(-x)
        if far(fixed(given), given.double() / torch.tensor(STEP).double() + zero):
            wrong.append(name)
    assert wrong == []


@needs_dnnl
@pytest.mark.parametrize(("left", "right", "target"), [(0, 1, 114), (114, 255, 128), (255, 0, 0), (128, 114, 255), (1, 128, 1)])
@pytest.mark.parametrize("relu", [False, True])
def test_sums_are_right_for_every_layout(left, right, target, relu, threads):
    a, b, y = QParams(0.021, left), QParams(0.034, right), QParams(0.047, target)
    step = Step("sum", "y", ("a", "b"), {"left": grid(a), "right": grid(b), "output": grid(y), "relu": relu})
    function, wrong = function_of(step), []
    sizes = {"channels": (1, 3, 18, 33), "sizes": ((7, 5), (8, 8), (1, 64)), "batches": (1, 2, 7)} if threads == 1 else {
        "channels": (18,), "sizes": ((16, 32),), "batches": (7,)
    }  # fmt: skip
    for c, (h, w), n in itertools.product(*sizes.values()):
        ways = list(layouts(numbers, n, c, h, w).items())
        for i, (name, one) in enumerate(ways):
            other = ways[(i + 4) % len(ways)][1]
            total = (one.long() - left).double() * 0.021 + (other.long() - right).double() * 0.034
            place = (total.clamp(min=0) if relu else total) / 0.047 + target
            wrong += [(name, n, c, h, w, way) for way, got in both_ways(step, function, one, other).items() if far(got, place)]
    assert wrong == []


POOLS = [((2, 2), (2, 2), (0, 0), (1, 1)), ((3, 3), (2, 2), (1, 1), (1, 1)), ((3, 2), (1, 3), (1, 0), (2, 1))]


@needs_dnnl
@pytest.mark.parametrize("ceil", [False, True])
@pytest.mark.parametrize("pool", POOLS)
def test_maxima_are_right_for_every_layout(pool, ceil, threads):
    named = dict(zip(("kernel", "stride", "padding", "dilation"), map(list, pool), strict=True))
    step = Step("max_pool", "y", ("x",), {**named, "ceil_mode": ceil})
    function, wrong = function_of(step), []
    some = lattice(numbers, (1, 3, 18, 33), ((7, 5), (8, 8), (16, 32))) if threads == 1 else lattice(numbers, (18,), ((16, 32),), (7,))
    for name, x in some:
        place = F.max_pool2d(x.double(), *pool, ceil_mode=ceil)
        wrong += [(name, way) for way, got in both_ways(step, function, x).items() if not torch.equal(got.double(), place)]
    assert wrong == []


@needs_dnnl
@pytest.mark.parametrize(("source", "target"), [(0, 114), (114, 0), (255, 128), (128, 255), (1, 1)])
@pytest.mark.parametrize("call", ["flat", "kept", "adaptive"])
def test_means_are_right_for_every_layout(call, source, target, threads):
    given, into = QParams(0.021, source), QParams(0.013, target)
    named = {
        "flat": ("torch.mean", {"tuple": [{"$": "x"}, {"list": [2, 3]}]}),
        "kept": ("Tensor.mean", {"tuple": [{"$": "x"}, {"tuple": [-2, -1]}, True]}),
        "adaptive": ("F.adaptive_avg_pool2d", {"tuple": [{"$": "x"}, 1]}),
    }[call]
    attrs = {"function": named[0], "args": named[1], "kwargs": {"dict": {}}, "input": grid(given), "output": grid(into)}
    step = Step("average", "y", ("x",), attrs)
    function, wrong = function_of(step), []
    some = lattice(numbers) if threads == 1 else lattice(numbers, (18,), ((16, 32),), (7,))
    for name, x in some:
        sums = x.long().sum((2, 3), keepdim=call != "flat")
        place = (sums.double() / (x.shape[2] * x.shape[3]) - source) * 0.021 / 0.013 + target
        wrong += [(name, way) for way, got in both_ways(step, function, x).items() if far(got, place)]
    assert wrong == []


@needs_dnnl
@pytest.mark.parametrize(("source", "target", "top"), [(0, 114, 255), (114, 0, 127), (255, 128, 255), (57, 60, 63)])
@pytest.mark.parametrize("relu", [False, True])
def test_factors_and_shifts_of_channels_are_right_for_every_layout(source, target, top, relu, threads):
    into, wrong = QParams(0.047, min(target, top), top), []
    channels = (1, 3, 18, 33) if threads == 1 else (18,)
    for c in channels:
        draw = torch.Generator().manual_seed(c)
        factor, shift = torch.randn(c, generator=draw), torch.randn(c, generator=draw)
        attrs = {"norm": "n", "path": "n", "relu": relu, "input": grid(QParams(0.021, source)), "output": grid(into)}
        step = Step("affine", "y", ("x",), attrs)
        function = function_of(step, tensors={"n.factor": factor, "n.shift": shift})
        for name, x in lattice(numbers, (c,), ((7, 5), (8, 8), (1, 1))):
            real = (x.long() - source).double() * 0.021 * factor.double()[:, None, None] + shift.double()[:, None, None]
            place = (real.clamp(min=0) if relu else real) / 0.047 + into.zero_point
            wrong += [(name, way) for way, got in both_ways(step, function, x).items() if far(got, place, top)]
    assert wrong == []


@needs_dnnl
@pytest.mark.parametrize(
    ("left", "right", "target", "top"), [(0, 0, 0, 255), (31, 0, 29, 127), (255, 0, 128, 255), (114, 7, 60, 127), (1, 255, 3, 63)]
)
def test_gates_are_right_for_every_layout(left, right, target, top, threads):
    a, b, y = QParams(0.021, left), QParams(1 / 250, right), QParams(0.013, target, top)
    step = Step("gate", "y", ("a", "b"), {"left": grid(a), "right": grid(b), "output": grid(y)})
    function, wrong = function_of(step), []
    for c, (h, w), n in itertools.product((1, 3, 18, 33) if threads == 1 else (18,), ((7, 5), (8, 8), (1, 2)), (1, 2, 7)):
        ways = list(layouts(numbers, n, c, h, w).items())
        gates = list(layouts(numbers, n, c, 1, 1).values())
        for i, (name, one) in enumerate(ways):
            by = gates[(i + 4) % len(gates)]
            place = (one.long() - left).double() * 0.021 * (by.long() - right).double() / 250 / 0.013 + target
            wrong += [(name, n, c, h, w, way) for way, got in both_ways(step, function, one, by).items() if far(got, place, top)]
    assert wrong == []


@needs_dnnl
@pytest.mark.parametrize("top", [15, 63, 127])
def test_steps_end_where_their_grid_does(top, threads):
    zero = top // 3
    a, b, y = QParams(0.021, 40), QParams(0.034, 7), QParams(0.019, zero, top)
    both = Step("sum", "y", ("a", "b"), {"left": grid(a), "right": grid(b), "output": grid(y), "relu": True})
    call = {"function": "torch.mean", "args": {"tuple": [{"$": "x"}, {"list": [2, 3]}]}, "kwargs": {"dict": {}}}
    mean = Step("average", "y", ("x",), {**call, "input": grid(a), "output": grid(y)})
    rounded = Step("quantize", "y", ("x",), {"grid": grid(y)})
    # The runtime asks for these two where a convolution reads a mean, and for values inside of a program.
    squeezed, inner = Direct().steps().mean(a, y, True, None), Direct().steps().quantize(y, False, None)
    wrong = []
    for name, x in lattice(numbers, (1, 18, 33), ((7, 5), (8, 8)), (1, 2)):
        real = (x.long() - 40).double() * 0.021
        total = (real + (x.long() - 7).double() * 0.034).clamp(min=0)
        for what, step, inputs, exact in (
            ("sum", both, (x, x), total), ("mean", mean, (x,), real.mean((2, 3))), ("quantize", rounded, (real.float(),), real.float()),
        ):  # fmt: skip
            place = exact.double() / 0.019 + zero
            wrong += [(what, name, way) for way, got in both_ways(step, function_of(step), *inputs).items() if far(got, place, top)]
        if far(squeezed(x), real.mean((2, 3)) / 0.019 + zero, top) or far(inner(real.float()), real.float().double() / 0.019 + zero, top):
            wrong.append(("asked directly", name))
    assert wrong == []


@needs_dnnl
@pytest.mark.parametrize("top", [15, 127, 255])
def test_what_linear_layers_read_is_quantized_as_it_lies(top, threads):
    wrong, zero = [], top // 4
    step, reader = Step("quantize", "y", ("x",), {"grid": [STEP, zero, top]}), Step("layer", "z", ("y",), {"kind": "linear"})
    for name, x in itertools.chain(lattice(normal, (3, 18), ((7, 5), (1, 64)), (1, 2)), other_ranks(normal).items()):
        model = QuantizedModel(Program((step,), "y", {}, {}), [Direct()])
        # Not the program's own input, whose rounding is another.
        model.program, model._inputs = Program((step, reader), "y", {}, {}), ()
        place = x.double() / torch.tensor(STEP).double() + zero
        for way, got in both_ways(step, model._function(step), x).items():
            dense = x.is_contiguous() or (way == "called" and torch.ops.aten.is_non_overlapping_and_dense(x))
            if far(got, place, top) or (dense and got.stride() != x.stride()):
                wrong.append((name, way))
    assert wrong == []


@needs_dnnl
@pytest.mark.parametrize("zero", ZERO_POINTS)
def test_padding_is_right_for_every_layout(zero):
    call = {"function": "F.pad", "args": {"tuple": [{"$": "x"}, {"tuple": [1, 2, 3, 0]}]}, "kwargs": {"dict": {}}}
    step = Step("pad", "y", ("x",), {**call, "grid": [STEP, zero, 255]})
    function, wrong = function_of(step), []
    for name, x in itertools.chain(lattice(numbers, (1, 3, 18), ((7, 5), (1, 1)), (1, 2)), other_ranks(numbers).items()):
        place = torch.full((*x.shape[:-2], x.shape[-2] + 3, x.shape[-1] + 3), zero)
        place[..., 3:, 1:-2] = x.long()
        wrong += [(name, way) for way, got in both_ways(step, function, x).items() if not torch.equal(got.long(), place)]
    assert wrong == []


def layer(kind, shape, source, target, accumulate=None, **more):
    """A layer whose inputs stay below 128: no instruction set saturates with those."""
    g = torch.Generator().manual_seed(3)
    weight = torch.randint(-127, 128, shape, generator=g).to(torch.int8)
    scale = (torch.rand(shape[0], generator=g) + 0.5) * 0.02 / weight[0].numel() ** 0.5
    bias = torch.randn(shape[0], generator=g)
    return IntegerLayer(kind, weight, scale, bias, QParams(0.021, source, 127), QParams(0.047, target), "none", accumulate, **more)


def layer_step(given):
    """The step of a program that holds this layer, with the program's weights and biases."""
    attrs = {
        "layer": "c", "path": "c", "kind": given.kind, "bias": True, "activation": given.activation, "input": grid(given.input),
        "output": grid(given.output), "accumulate": grid(given.accumulate),
        "geometry": {} if given.kind == "linear" else {
            "stride": given.stride, "padding": given.padding, "dilation": given.dilation, "groups": given.groups
        },
    }  # fmt: skip
    names = ("x", "other") if given.accumulate else ("x",)
    return (
        Step("layer", "y", names, attrs),
        {"c": QTensor(given.weight, given.weight_scale[:, None], None, integer(8))},
        {"c.bias": given.bias},
    )


def place_of(given, x, other=None):
    """The exact result on the layer's grid: a sum of integers, then float64."""
    values = (x.long() - given.input.zero_point).double()
    weight, shape = given.weight.double(), (-1, *[1] * given.dims)
    if given.kind == "linear":
        sums = values @ weight.t()
        shape = (-1,)
    else:
        function = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}[given.dims]
        sums = function(values, weight, None, given.stride, given.padding, given.dilation, given.groups)
    y = sums * (given.weight_scale.double() * given.input.scale).reshape(shape) + given.bias.double().reshape(shape)
    if other is not None:
        y = y + (other.long() - given.accumulate.zero_point).double() * given.accumulate.scale
    return y / given.output.scale + given.output.zero_point


CONVOLUTIONS = {
    "3x3": {"kernel": (3, 3), "padding": (1, 1)},
    "1x1": {"kernel": (1, 1), "padding": (0, 0)},
    "stride": {"kernel": (3, 3), "padding": (1, 1), "stride": (2, 2)},
    "depthwise": {"kernel": (3, 3), "padding": (1, 1), "groups": True},
    "dilated": {"kernel": (3, 3), "padding": (2, 2), "dilation": (2, 2)},
    "rows": {"kernel": (1, 5), "padding": (0, 2)},
}


def convolution(kind, channels, source, target, accumulate=None):
    about = {"stride": (1, 1), "dilation": (1, 1), "groups": False, **CONVOLUTIONS[kind]}
    groups = channels if about.pop("groups") else 1
    return layer("conv", (channels, channels // groups, *about.pop("kernel")), source, target, accumulate, groups=groups, **about)


# Zero points of a grid of seven bits, which are what padded places hold.
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("kind", CONVOLUTIONS)
@pytest.mark.parametrize(("source", "target"), [(0, 114), (1, 255), (57, 128), (114, 1), (127, 0)])
def test_convolutions_are_right_for_every_layout(kernel, kind, source, target):
    wrong = []
    for c in (1, 3, 17, 18):
        given = convolution(kind, c, source, target)
        step, weights, biases = layer_step(given)
        function = function_of(step, kernel, weights, biases)
        for name, x in lattice(partial(numbers, top=128), (c,), ((7, 5), (8, 8)), (1, 2)):
            got = both_ways(step, function, x) if kernel.name == "dnnl" else {"called": function(x)}
            wrong += [(name, way) for way, y in got.items() if far(y, place_of(given, x))]
    assert wrong == []


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("kind", ["3x3", "1x1", "stride", "depthwise"])
@pytest.mark.parametrize(("source", "zero", "target"), [(0, 255, 114), (114, 128, 0), (57, 1, 255)])
def test_convolutions_with_a_residual_are_right_for_every_layout(kernel, kind, source, zero, target):
    wrong = []
    for c in (3, 18):
        given = convolution(kind, c, source, target, QParams(0.033, zero))
        step, weights, biases = layer_step(given)
        function = function_of(step, kernel, weights, biases)
        for n, (h, w) in itertools.product((1, 2), ((7, 5), (8, 8))):
            out = tuple(place_of(given, numbers(n, c, h, w, top=128)).shape)
            others = list(layouts(numbers, *out).values())
            for i, (name, x) in enumerate(layouts(partial(numbers, top=128), n, c, h, w).items()):
                other = others[(i + 4) % len(others)]
                place = place_of(given, x, other)
                got = {"called": function(x.clone(), other.clone())}
                if kernel.name == "dnnl":
                    got = both_ways(step, function, x, other)
                wrong += [(name, n, c, h, w, way) for way, y in got.items() if far(y, place)]
    assert wrong == []


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(("source", "target"), [(0, 114), (57, 255), (127, 0)])
def test_linear_layers_are_right_for_every_layout(kernel, source, target, threads):
    make = partial(numbers, top=128)
    wrong = []
    for width in (5, 18, 64):
        given = layer("linear", (19, width), source, target)
        step, weights, biases = layer_step(given)
        function = function_of(step, kernel, weights, biases)
        ways = {
            "2-D": make(7, width),
            "one row": make(1, width),
            "transposed": make(width, 7).t(),
            "sliced": make(14, 2 * width)[::2, 1::2],
            "expanded": make(1, width).expand(7, width),
            "one number": make(1, 1).expand(7, width),
            "3-D transposed": make(2, width, 9).transpose(1, 2),
            "3-D sliced": make(2, 9, width)[:, 1:],
            "4-D": make(2, width, 3, 5).permute(0, 2, 3, 1),
        }
        for name, x in ways.items():
            got = both_ways(step, function, x) if kernel.name == "dnnl" else {"called": function(x)}
            wrong += [(name, width, way) for way, y in got.items() if far(y, place_of(given, x))]
    assert wrong == []


@pytest.mark.parametrize("kernel", KERNELS[1:])
@pytest.mark.parametrize("dims", [1, 3])
@pytest.mark.parametrize(("source", "target"), [(0, 114), (57, 255), (127, 0)])
def test_convolutions_in_one_and_three_dimensions_are_right_for_every_layout(kernel, dims, source, target):
    make = partial(numbers, top=128)
    each = {"stride": (1,) * dims, "padding": (1,) * dims, "dilation": (1,) * dims}
    wrong = []
    for c in (1, 5, 18):
        given = layer("conv", (c, c, *(3,) * dims), source, target, **each)
        step, weights, biases = layer_step(given)
        function = function_of(step, kernel, weights, biases)
        size = (7, 5, 4)[:dims]
        ways = {
            "contiguous": make(2, c, *size),
            "transposed": make(2, *size, c).movedim(-1, 1),
            "batch and channels": make(c, 2, *size).transpose(0, 1),
            "expanded": make(2, 1, *size).expand(2, c, *size),
            "sliced": make(2, 2 * c, *size)[:, ::2],
            "one image": make(1, c, *size),
        }
        wrong += [(name, c) for name, x in ways.items() if far(function(x), place_of(given, x))]
    assert wrong == []


def test_the_lattice_holds_what_the_reorder_got_wrong():
    names = {name for name, _ in lattice(normal)}
    assert len(names) == len(CHANNELS) * len(SIZES) * len(BATCHES) * len(layouts(normal, 1, 1, 1, 1))
    assert {"contiguous (1, 18, 8, 8)", "transposed (1, 1, 16, 32)", "expanded from the rows (1, 1, 16, 32)"} <= names
    assert all(math.prod(x.shape) for _, x in lattice(normal, (1,), ((1, 1),), (1,)))
