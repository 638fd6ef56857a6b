"""Small nets end to end: laid out, calibrated, converted, run on the kernels, and compared with an emulation in
float64 that is written here."""

import copy
import itertools
import math
import threading

import pytest
import torch
import torch.nn.functional as F
from given_net import Net
from torch import fx, nn

from engine.algorithms.channelwise import quantize_weight
from engine.kernels.dnnl.layers import Direct
from engine.kernels.dnnl.library import path
from engine.kernels.simulate import Simulate
from engine.kernels.x86_int8 import OneDNN
from engine.lowering.graph.convert import convert, unit_parameters
from engine.lowering.graph.fuse import find_pairs, fuse
from engine.lowering.graph.kinds import kind, module_of
from engine.lowering.graph.layout import arrange
from engine.lowering.graph.normalize import functional_to_modules
from engine.lowering.graph.runtime import QuantizedModel
from engine.lowering.graph.trace import trace
from engine.numerics.qparams import affine
from engine.recipe.spec import ActivationSpec, LayerSpec, WeightSpec

AVERAGES = ("mean", "avg_pool", "adaptive_avg_pool")
BITS = 7  # Exact on every instruction set.
TORCH = [OneDNN()] if hasattr(torch.ops.onednn, "qconv_pointwise") else []
INTEGER = [*([Direct()] if path() else []), *TORCH, Simulate()]
KERNELS = {"dnnl": INTEGER, "onednn": [*TORCH, Simulate()], "simulation": [Simulate()]}


class Leaf(nn.Module):
    """Cannot be traced."""

    def forward(self, x):
        return x * torch.sigmoid(x) if x.sum() < 1e9 else x


def conv(inputs, outputs, kernel=3, **more):
    return nn.Conv2d(inputs, outputs, kernel, padding=more.pop("padding", kernel // 2), **more)


def residual(s, a):
    return torch.relu(s.c3(s.c2(a).relu()) + a)


def head(function):
    """The given middle between a first convolution and a pooled linear layer."""
    return lambda s, x: s.f(function(s, s.c1(x).relu()).mean((2, 3)))


def twice_in_place(s, a):
    b = s.c2(a).relu()
    b += a
    c = s.c3(b)
    c += a
    return c.relu_()


def option_a(s, a):
    return torch.relu(s.c3(s.c2(a).relu()) + F.pad(a[:, :, ::2, ::2], (0, 0, 0, 0, 4, 4), "constant", 0))


def pooled_shortcut(s, a):
    r = torch.relu(s.c3(s.c2(a).relu()) + F.max_pool2d(a, 1, 2))
    return torch.cat([r, F.max_pool2d(a, 2)], 1)


def reads_twice(s, a):
    return s.c3(torch.relu(s.c2(a) + a)) + s.c4(a)


def concat(s, a):
    return torch.cat([s.c2(a), s.c3(a).relu(), a], 1)


def same_module_added(s, a):
    return s.c3(torch.relu(s.c2(a) + s.c2(a.flip(3)))).relu()


def mutated_shortcut(s, a):
    c = s.c2(a)
    r = s.c3(s.relu(c))
    return r + c


def squeeze_excite(s, a):
    return torch.sigmoid(s.c2(F.adaptive_avg_pool2d(a, 1))) * a


def padded_by_shape(s, a):
    """As TensorFlow pads: wider at the end, by the size that reaches it."""
    short = [max((-(-side // 2) - 1) * 2 + 3 - side, 0) for side in a.shape[-2:]]
    rows, columns = short
    return s.c2(F.pad(a, (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2))).relu()


def excited(s, a):
    squeezed = F.relu(s.down(a.mean((2, 3), keepdim=True)))
    return s.c3(F.hardswish(s.c2(a) * F.hardsigmoid(s.up(squeezed))))


def gated_by_silu(s, a):
    a = F.silu(s.c2(a))
    return s.c3(s.up(F.silu(s.down(a.mean((2, 3), keepdim=True)))).sigmoid() * a)


def dense(s, x):
    a = F.max_pool2d(s.c1(x).relu(), 2)
    a = torch.cat([a, s.c2(s.b1(a).relu())], 1)
    a = torch.cat([a, s.c3(F.relu(s.b2(a)))], 1)
    return s.f(F.relu(s.b3(a)).mean((2, 3)))


def functional(s, x):
    a = F.relu6(F.conv2d(x, s.w.weight, s.w.bias, stride=2, padding=1))
    a = F.adaptive_avg_pool2d(F.silu(F.conv2d(a, s.g.weight, groups=4, padding=1)), (2, 2))
    return F.linear(torch.flatten(a, 1), s.f.weight, s.f.bias)


def shared_head(s, a):
    """One module in two places, at two sizes."""
    return s.c3(s.relu(s.shared(a))) + s.c3(s.relu(s.shared(F.avg_pool2d(a, 2)))).mean((2, 3), keepdim=True)


def non_local(s, a):
    """Attention between places (Wang et al. 2018): its result comes contiguous, with channels that are no multiple of four."""
    theta, phi, g = s.theta(a).flatten(2), s.phi(a).flatten(2), s.g(a).flatten(2)
    weights = torch.softmax(theta.transpose(1, 2) @ phi / 6, -1)
    return s.back((g @ weights.transpose(1, 2)).reshape(-1, 18, 16, 16)) + a


def with_coordinates(s, x):
    """Rows and columns as two more channels (CoordConv, Liu et al. 2018), both seen from everywhere."""
    rows, columns = s.rows.expand(x.size(0), -1, -1, 16), s.columns.expand(x.size(0), -1, 16, -1)
    return s.f(s.c2(torch.cat([s.c1(rows), s.c1(columns), s.c3(x)], 1).relu()).relu().mean((2, 3)))


def turned(s, x):
    """One channel whose rows and columns are exchanged, as frequency and time of a spectrogram are."""
    return s.f(s.c1(x[:, :1].transpose(2, 3)).relu().mean((2, 3)))


def also_float(s, x):
    a = s.c2(s.c1(x).relu()).relu()
    return s.f(a.mean((2, 3))) + torch.softmax(a.flatten(1), 1).amax(1, keepdim=True)


NETS = {
    "chain": lambda: Net(
        lambda s, x: s.f(F.max_pool2d(s.c2(F.relu(s.c1(x))).relu(), 4).flatten(1)), c1=conv(3, 16), c2=conv(16, 16), f=nn.Linear(256, 10)
    ),
    "view": lambda: Net(lambda s, x: s.f(F.max_pool2d(s.c1(x).relu(), 4).view(x.size(0), -1)), c1=conv(3, 16), f=nn.Linear(256, 10)),
    "residual": lambda: Net(head(residual), c1=conv(3, 16), c2=conv(16, 16), c3=conv(16, 16), f=nn.Linear(16, 10)),
    "residual without relu": lambda: Net(
        head(lambda s, a: s.c3(s.c2(a).relu()) + a), c1=conv(3, 16), c2=conv(16, 16), c3=conv(16, 16), f=nn.Linear(16, 10)
    ),
    "own input added": lambda: Net(head(lambda s, a: torch.relu(s.c2(a) + a)), c1=conv(3, 16), c2=conv(16, 16), f=nn.Linear(16, 10)),
    "downsample": lambda: Net(
        head(lambda s, a: torch.relu(s.c3(s.c2(a).relu()) + s.d(a))),
        c1=conv(3, 16),
        c2=conv(16, 24, stride=2),
        c3=conv(24, 24),
        d=conv(16, 24, 1, stride=2),
        f=nn.Linear(24, 10),
    ),
    "option A": lambda: Net(head(option_a), c1=conv(3, 16), c2=conv(16, 24, stride=2), c3=conv(24, 24), f=nn.Linear(24, 10)),
    "sliced shortcut": lambda: Net(
        head(lambda s, a: torch.relu(s.c3(s.c2(a).relu()) + a[:, :, ::2, ::2])),
        c1=conv(3, 16),
        c2=conv(16, 16, stride=2),
        c3=conv(16, 16),
        f=nn.Linear(16, 10),
    ),
    "pooled shortcut": lambda: Net(head(pooled_shortcut), c1=conv(3, 16), c2=conv(16, 16, stride=2), c3=conv(16, 16), f=nn.Linear(32, 10)),
    "read again": lambda: Net(head(reads_twice), c1=conv(3, 16), c2=conv(16, 16), c3=conv(16, 16), c4=conv(16, 16), f=nn.Linear(16, 10)),
    "shortcut read again": lambda: Net(
        head(lambda s, a: torch.relu(s.c3(s.c2(a).relu()) + a) + s.c4(a)),
        c1=conv(3, 16),
        c2=conv(16, 16),
        c3=conv(16, 16),
        c4=conv(16, 16),
        f=nn.Linear(16, 10),
    ),
    "padded without relu": lambda: Net(
        lambda s, x: s.c2(F.pad(s.c1(x), (2, 1, 0, 3))).mean((2, 3)), c1=conv(3, 16), c2=conv(16, 10, padding=0)
    ),
    "sum of linears": lambda: Net(
        lambda s, x: s.h(s.f(x.flatten(1)) + s.g(x.flatten(1))), f=nn.Linear(768, 64), g=nn.Linear(768, 64), h=nn.Linear(64, 10)
    ),
    "plus a shaped parameter": lambda: Net(
        head(lambda s, a: s.c2(a + s.p.reshape(1, 16, 1, 1))),
        c1=conv(3, 16),
        c2=conv(16, 16),
        p=nn.Parameter(torch.randn(16) * 30),
        f=nn.Linear(16, 10),
    ),
    "in place": lambda: Net(head(twice_in_place), c1=conv(3, 16), c2=conv(16, 16), c3=conv(16, 16), f=nn.Linear(16, 10)),
    "mutated shortcut": lambda: Net(
        head(mutated_shortcut), c1=conv(3, 16), c2=conv(16, 16), c3=conv(16, 16), relu=nn.ReLU(True), f=nn.Linear(16, 10)
    ),
    "concat": lambda: Net(head(concat), c1=conv(3, 16), c2=conv(16, 16), c3=conv(16, 16), f=nn.Linear(48, 10)),
    "chunk": lambda: Net(
        lambda s, x: (lambda a, b: s.c2(a) + s.c3(b))(*s.c1(x).relu().chunk(2, 1)).mean((2, 3)),
        c1=conv(3, 16),
        c2=conv(8, 10),
        c3=conv(8, 10),
    ),
    "called twice": lambda: Net(head(lambda s, a: s.c2(s.c2(a).relu()).relu()), c1=conv(3, 16), c2=conv(16, 16), f=nn.Linear(16, 10)),
    "called twice and added": lambda: Net(head(same_module_added), c1=conv(3, 16), c2=conv(16, 16), c3=conv(16, 16), f=nn.Linear(16, 10)),
    "squeeze and excite": lambda: Net(head(squeeze_excite), c1=conv(3, 16), c2=conv(16, 16, 1), f=nn.Linear(16, 10)),
    "broadcast sum": lambda: Net(
        head(lambda s, a: s.c3(s.c2(F.adaptive_avg_pool2d(a, 1)) + a)),
        c1=conv(3, 16),
        c2=conv(16, 16, 1),
        c3=conv(16, 16),
        f=nn.Linear(16, 10),
    ),
    "softmax": lambda: Net(lambda s, x: s.f(torch.softmax(s.c1(x).mean((2, 3)), 1) * 10), c1=conv(3, 16), f=nn.Linear(16, 10)),
    "also float": lambda: Net(also_float, c1=conv(3, 16), c2=conv(16, 16), f=nn.Linear(16, 10)),
    "depthwise": lambda: Net(
        head(lambda s, a: F.relu6(s.c3(F.relu6(s.c2(a))))),
        c1=conv(3, 16),
        c2=conv(16, 16, groups=16),
        c3=conv(16, 12, 1, groups=2),
        f=nn.Linear(12, 10),
    ),
    "hardswish": lambda: Net(head(lambda s, a: F.hardswish(s.c2(a))), c1=conv(3, 16), c2=conv(16, 16), f=nn.Linear(16, 10)),
    "padded by shape": lambda: Net(
        head(padded_by_shape), c1=conv(3, 16, stride=2, padding=0), c2=conv(16, 16, stride=2, padding=0), f=nn.Linear(16, 10)
    ),
    "excited": lambda: Net(
        head(excited),
        c1=conv(3, 16),
        c2=conv(16, 16, groups=16),
        down=conv(16, 8, 1),
        up=conv(8, 16, 1),
        c3=conv(16, 16, 1),
        f=nn.Linear(16, 10),
    ),
    "gated by silu": lambda: Net(
        head(gated_by_silu),
        c1=conv(3, 16),
        c2=conv(16, 16, groups=16),
        down=conv(16, 8, 1),
        up=conv(8, 16, 1),
        c3=conv(16, 16, 1),
        f=nn.Linear(16, 10),
    ),
    "dense": lambda: Net(
        dense,
        c1=conv(3, 16),
        b1=nn.BatchNorm2d(16),
        c2=conv(16, 8),
        b2=nn.BatchNorm2d(24),
        c3=conv(24, 8),
        b3=nn.BatchNorm2d(32),
        f=nn.Linear(32, 10),
    ),
    "linear gelu": lambda: Net(
        head(lambda s, a: s.c2(a)), c1=conv(3, 16), c2=conv(16, 16), f=nn.Sequential(nn.Linear(16, 24), nn.GELU(), nn.Linear(24, 10))
    ),
    "functional": lambda: Net(functional, w=conv(3, 16), g=conv(16, 16, groups=4, bias=False), f=nn.Linear(64, 10)),
    "shared": lambda: Net(head(shared_head), c1=conv(3, 16), shared=conv(16, 16), c3=conv(16, 16), relu=nn.ReLU(), f=nn.Linear(16, 10)),
    "average pooling": lambda: Net(
        lambda s, x: s.f(s.p(s.c1(x).relu()).flatten(1)), c1=conv(3, 16), p=nn.AvgPool2d(3, 4, 1), f=nn.Linear(256, 10)
    ),
    "tokens": lambda: Net(
        lambda s, x: s.g(s.f(s.c1(x).flatten(2).transpose(1, 2) + s.p).relu()).mean(1),
        c1=conv(3, 16),
        f=nn.Linear(16, 32),
        g=nn.Linear(32, 10),
        p=nn.Parameter(torch.randn(1, 256, 16)),
    ),
    "tokens in two dimensions": lambda: Net(
        lambda s, x: s.f(s.l2(s.l1(s.c1(x).permute(0, 2, 3, 1)).relu()[:, 1:, ::2]).relu().transpose(1, 2).mean((1, 2))),
        c1=conv(3, 16),
        l1=nn.Linear(16, 24),
        l2=nn.Linear(24, 16),
        f=nn.Linear(16, 10),
    ),
    "parameter as input": lambda: Net(
        lambda s, x: s.f(s.c1(x).mean((2, 3))) + s.g(s.q),
        c1=conv(3, 16),
        f=nn.Linear(16, 10),
        g=nn.Linear(16, 10),
        q=nn.Parameter(torch.randn(1, 16)),
    ),
    "concat with a parameter": lambda: Net(
        lambda s, x: s.c2(torch.cat([s.c1(x).relu(), s.p.expand(x.size(0), -1, -1, -1)], 1)).mean((2, 3)),
        c1=conv(3, 16),
        c2=conv(18, 10),
        p=nn.Parameter(torch.randn(1, 2, 16, 16) * 40),
    ),
    "keywords": lambda: Net(lambda s, x: s.f(input=s.c1(input=x).mean((2, 3))), c1=conv(3, 16), f=nn.Linear(16, 10)),
    "plus a number": lambda: Net(
        head(lambda s, a: s.c2(a + 1.5) + torch.add(a, a, alpha=2)), c1=conv(3, 16), c2=conv(16, 16), f=nn.Linear(16, 10)
    ),
    "permuted": lambda: Net(lambda s, x: s.c2(s.c1(x).relu().permute(0, 2, 3, 1)).mean((2, 3)), c1=conv(3, 16), c2=conv(16, 10)),
    "returned value": lambda: Net(lambda s, x: (lambda a: a.mean((2, 3)) + s.c2(a).mean((2, 3)))(s.c1(x)), c1=conv(3, 16), c2=conv(16, 16)),
    "leaf": lambda: Net(head(lambda s, a: s.c2(s.leaf(a)).relu()), c1=conv(3, 16), c2=conv(16, 16), leaf=Leaf(), f=nn.Linear(16, 10)),
    "images read twice": lambda: Net(
        lambda s, x: s.f(torch.cat([s.c1(x).mean((2, 3)), (x * x).mean((2, 3))], 1)), c1=conv(3, 16), f=nn.Linear(19, 10)
    ),
    "largest and where": lambda: Net(lambda s, x: s.f(s.c1(x).flatten(2).max(2)[0]), c1=conv(3, 16), f=nn.Linear(16, 10)),
    "batch norm": lambda: Net(
        lambda s, x: s.f(s.b2(s.c2(s.b1(s.c1(x)).relu())).relu().mean((2, 3))),
        c1=conv(3, 16),
        b1=nn.BatchNorm2d(16),
        c2=conv(16, 16, bias=False),
        b2=nn.BatchNorm2d(16),
        f=nn.Linear(16, 10),
    ),
    "resnet block": lambda: Net(
        lambda s, x: s.f((lambda a: s.r(s.b2(s.c2(a)) + a))(s.r(s.b1(s.c1(x)))).mean((2, 3))),
        c1=conv(3, 16, bias=False),
        b1=nn.BatchNorm2d(16),
        c2=conv(16, 16, bias=False),
        b2=nn.BatchNorm2d(16),
        f=nn.Linear(16, 10),
        r=nn.ReLU(True),
    ),
    "non-local": lambda: Net(
        head(non_local),
        c1=conv(3, 18),
        theta=conv(18, 18, 1),
        phi=conv(18, 18, 1),
        g=conv(18, 18, 1),
        back=conv(18, 18, 1),
        f=nn.Linear(18, 10),
    ),
    "coordinates": lambda: Net(
        with_coordinates,
        c1=conv(1, 6),
        c3=conv(3, 6),
        c2=conv(18, 16),
        f=nn.Linear(16, 10),
        rows=nn.Parameter(torch.linspace(-1, 1, 16).view(1, 1, 16, 1)),
        columns=nn.Parameter(torch.linspace(-1, 1, 16).view(1, 1, 1, 16)),
    ),
    "turned": lambda: Net(turned, c1=conv(1, 16), f=nn.Linear(16, 10)),
    "conv1d": lambda: Net(
        lambda s, x: s.f(s.c2(s.c1(x).relu()).relu().mean(2)),
        c1=nn.Conv1d(3, 16, 3, padding=1),
        c2=nn.Conv1d(16, 16, 3, stride=2),
        f=nn.Linear(16, 10),
    ),
    "linear hardswish": lambda: Net(
        head(lambda s, a: s.c2(a)), c1=conv(3, 16), c2=conv(16, 16), f=nn.Sequential(nn.Linear(16, 24), nn.Hardswish(), nn.Linear(24, 10))
    ),
    "conv3d": lambda: Net(
        lambda s, x: s.f(s.c2(s.c1(x).relu()).mean((2, 3, 4))),
        c1=nn.Conv3d(3, 8, 3, padding=1),
        c2=nn.Conv3d(8, 16, 3, stride=2),
        f=nn.Linear(16, 10),
    ),
}
INPUTS = {"conv1d": (3, 32), "conv3d": (3, 8, 8, 8), "turned": (3, 32, 16)}


class Ranges(fx.Interpreter):
    """The extremes of each source of a layout, from one run of the float graph."""

    def __init__(self, gm, layout):
        super().__init__(gm)
        self.sources = {source: c.name for c in layout.classes for source in c.sources}
        self.found = {}

    def run_node(self, n):
        value = super().run_node(n)
        if n.name in self.sources:
            low, high = self.found.get(self.sources[n.name], (math.inf, -math.inf))
            self.found[self.sources[n.name]] = (min(low, value.min().item()), max(high, value.max().item()))
        return value


class Emulated(fx.Interpreter):
    """The quantized net in float64: weights rounded per channel, values rounded where a layout has integers."""

    def __init__(self, gm, layout, ranges):
        gm = copy.deepcopy(gm).double()
        for unit in layout.units:
            layer = gm.get_submodule(unit.path)
            if hasattr(layer, "rounded"):
                continue
            weight = layer.weight.data
            if unit.bn:
                norm = gm.get_submodule(unit.bn)
                factor = norm.weight.data / (norm.running_var + norm.eps).sqrt()
                bias = 0 if layer.bias is None else layer.bias.data
                weight = weight * factor.reshape(-1, 1, 1, 1)
                layer.bias = nn.Parameter(norm.bias.data + (bias - norm.running_mean) * factor)
                gm.set_submodule(unit.bn, nn.Identity())
            step = weight.abs().flatten(1).amax(1).reshape(-1, *[1] * (weight.dim() - 1)) / 127
            layer.weight = nn.Parameter((weight / step).round() * step)
            layer.rounded = True
        super().__init__(gm)
        self.classes = {source: c.name for c in layout.classes for source in c.sources}
        self.ranges = ranges

    def run_node(self, n):
        value = super().run_node(n)
        name = self.classes.get(n.name)
        if name is None:
            return value
        low, high = min(self.ranges[name][0], 0.0), max(self.ranges[name][1], 0.0)
        step = (high - low) / (2**BITS - 1)
        zero = round(-low / step)
        return (((value / step).round() + zero).clamp(0, 2**BITS - 1) - zero) * step


def build(name, fold=True, weight_only=()):
    """The traced float graph, its layout, ranges and program, and the model it came from."""
    torch.manual_seed(0)
    model = NETS[name]().eval()
    for module in model.modules():
        if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear):
            nn.init.kaiming_normal_(module.weight)
        elif isinstance(module, nn.BatchNorm2d):
            for tensor, low, high in (
                (module.running_mean, -1, 1),
                (module.running_var, 0.5, 3),
                (module.weight.data, 0.5, 1.5),
                (module.bias.data, -0.5, 0.5),
            ):
                tensor.uniform_(low, high)
    x = torch.randn(24, *INPUTS.get(name, (3, 16, 16)))
    traced = trace(model, x[:2])
    gm = traced.module
    functional_to_modules(gm)
    if fold:
        gm, _, _ = fuse(gm, x[:2], find_pairs(gm))
    layers = [str(n.target) for n in gm.graph.nodes if kind(n) in ("conv", "linear")]
    full = LayerSpec(WeightSpec(), ActivationSpec(bits=BITS))
    specs = {path: LayerSpec(WeightSpec(bits=4)) if path in weight_only else full for path in layers}
    layout = arrange(gm, specs)
    seen = Ranges(gm, layout)
    with torch.no_grad():
        seen.run(x.clone())
    grids = {c: affine(*ends, BITS) for c, ends in seen.found.items()}
    assert set(grids) == {c.name for c in layout.classes}
    weights = {u.layer: quantize_weight(unit_parameters(gm, u)[0], WeightSpec()) for u in layout.units}
    for node in gm.graph.nodes:
        if str(node.target) in weight_only:
            weights[node.name] = quantize_weight(module_of(node).weight, WeightSpec(bits=4))
    program = convert(gm, layout, grids, weights)
    whole = {leaf.path: gm.get_submodule(leaf.path) for leaf in traced.untraced}
    return model, gm, layout, seen.found, program, whole, x


def sqnr(exact, got):
    return 10 * math.log10(exact.double().square().sum() / (got.double() - exact.double()).square().sum())


@pytest.mark.parametrize(("name", "kernels"), [(n, k) for n, k in itertools.product(NETS, KERNELS)])
def test_runs_as_emulated_and_near_fp32(name, kernels):
    model, gm, layout, ranges, program, whole, x = build(name)
    quantized = QuantizedModel(program, KERNELS[kernels], whole)
    given = x.clone()
    got = quantized(given)
    assert torch.equal(given, x)
    assert torch.equal(quantized(x.clone()), got)
    assert torch.equal(quantized.watch(x.clone())[program.result], got)
    with torch.no_grad():
        emulated = Emulated(gm, layout, ranges).run(x.double())
        # Rounding of near ties is all that may differ.
        assert sqnr(emulated, got) > 38
        assert sqnr(model(x.clone()), got) > 25
    for part in (slice(0, 1), slice(3, 10)):
        torch.testing.assert_close(quantized(x[part].clone()), got[part], rtol=1e-4, atol=1e-4)
    assert set(quantized.placement) == {unit.layer for unit in layout.units}
    assert quantized.simulated == any(label == "simulation" for label, _ in quantized.placement.values())


@pytest.mark.parametrize("name", ["batch norm", "resnet block"])
def test_quantize_first_folds_at_conversion(name):
    model, gm, layout, ranges, program, whole, x = build(name, fold=False)
    assert any(unit.bn for unit in layout.units)
    got = QuantizedModel(program, INTEGER, whole)(x.clone())
    with torch.no_grad():
        assert sqnr(Emulated(gm, layout, ranges).run(x.double()), got) > 38
        assert sqnr(model(x.clone()), got) > 25
    assert not any(step.attrs.get("kind", "").startswith("BatchNorm") for step in program.steps)


def test_weight_only_layers_stay_float_and_four_bits():
    _, gm, layout, _, program, whole, x = build("chain", weight_only=("c2",))
    assert [unit.path for unit in layout.units] == ["c1", "f"]
    (step,) = [step for step in program.steps if step.op == "module"]
    assert step.attrs["weight_only"]
    assert program.layers["c2"].bits == 4
    assert "c2.weight" not in program.tensors
    got = QuantizedModel(program, INTEGER, whole).watch(x)
    reference = copy.deepcopy(gm.get_submodule("c2")).double()
    size = reference.weight.data.abs().flatten(1).amax(1).reshape(-1, 1, 1, 1) / 7
    reference.weight.data = (reference.weight.data / size).round() * size
    source = got[step.inputs[0]]
    torch.testing.assert_close(got["c2"].double(), reference(source.double()), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "name",
    [
        "chain",
        "view",
        "residual",
        "downsample",
        "option A",
        "read again",
        "concat",
        "called twice",
        "resnet block",
        "gated by silu",
        "dense",
        "linear gelu",
    ],
)
def test_integers_all_the_way(name):
    """One quantize at the start; nothing turns back to float before the end."""
    program = build(name)[4]
    ops = [step.op for step in program.steps]
    assert ops[0] == "quantize"
    assert ops.count("quantize") == 1
    assert "dequantize" not in ops
    assert "module" not in ops


def test_gates_and_free_normalizations_are_steps_on_integers():
    assert [step.op for step in build("gated by silu")[4].steps].count("gate") == 1
    assert [(step.op, step.attrs.get("relu")) for step in build("dense")[4].steps].count(("affine", True)) == 3


@pytest.mark.parametrize(
    ("name", "sums"),
    [
        ("residual", 1),
        ("residual without relu", 1),
        ("downsample", 1),
        ("option A", 1),
        ("sliced shortcut", 1),
        ("read again", 2),
        ("resnet block", 1),
    ],
)
def test_residual_additions_run_inside_the_convolution(name, sums):
    layout, program = build(name)[2], build(name)[4]
    assert sum(unit.add is not None for unit in layout.units) == sums
    assert layout.sums == ()
    fused = [step for step in program.steps if step.op == "layer" and step.attrs["accumulate"]]
    assert len(fused) == sums
    assert all(len(step.inputs) == 2 for step in fused)
    if len(INTEGER) > 1:
        placement = QuantizedModel(program, INTEGER).placement
        summed = ("onednn.qconv2d_pointwise.binary", "dnnl.convolution+sum")
        assert sum(label in summed for label, _ in placement.values()) == sums


def test_an_addition_of_two_calls_of_one_module_is_made_once():
    layout = build("called twice and added")[2]
    assert [unit.add is not None for unit in layout.units if unit.path == "c2"] == [False, True]


def test_a_mean_has_a_grid_of_its_own():
    """A mean is much smaller than what it is taken of."""
    _, _, layout, _, program, _, _ = build("residual")
    (average,) = [step for step in program.steps if step.op == "average"]
    assert average.attrs["output"][0] < 0.5 * average.attrs["input"][0]
    assert any(c.name == "mean" and c.sources == ("mean",) for c in layout.classes)


@pytest.mark.parametrize("asked", [(4, 7), (7, 4)])
def test_a_value_with_two_readers_takes_the_wider_grid(asked):
    gm = trace(NETS["read again"]().eval(), torch.randn(2, 3, 16, 16)).module
    bits = {"c2": asked[0], "c4": asked[1]}
    specs = {path: LayerSpec(WeightSpec(), ActivationSpec(bits=bits.get(path, 4))) for path in ("c1", "c2", "c3", "c4", "f")}
    layout = arrange(gm, specs)
    value = next(c for c in layout.classes if "c2" in c.layers)
    assert value.spec.bits == 7
    assert set(value.layers) == {"c2", "c4"}


def test_what_no_layer_reads_follows_the_plan():
    spec = ActivationSpec(bits=5, observer="percentile")
    gm = trace(NETS["residual"]().eval(), torch.randn(2, 3, 16, 16)).module
    layout = arrange(gm, {path: LayerSpec(WeightSpec(), spec) for path in ("c1", "c2", "c3", "f")})
    assert {c.spec for c in layout.classes} == {spec}


def test_layers_kept_in_fp32_read_and_give_floats():
    torch.manual_seed(0)
    model = NETS["chain"]().eval()
    gm = trace(model, torch.randn(2, 3, 16, 16)).module
    layout = arrange(gm, {"c2": LayerSpec(WeightSpec(), ActivationSpec())})
    assert [unit.path for unit in layout.units] == ["c2"]
    assert [c.members for c in layout.classes] == [("relu",)]
    assert arrange(gm, {}).units == arrange(gm, {}).classes == ()
    program = convert(gm, arrange(gm, {}), {}, {})
    x = torch.randn(5, 3, 16, 16)
    torch.testing.assert_close(QuantizedModel(program, INTEGER)(x), model(x))


@pytest.mark.skipif(len(INTEGER) == 1, reason="no integer kernel runs here")
@pytest.mark.parametrize("name", sorted(NETS))
def test_nothing_is_simulated_where_integer_kernels_run(name):
    """An activation that a kernel does not know stays outside of its layer, and costs the layer nothing."""
    program, whole = build(name)[4], build(name)[5]
    assert not QuantizedModel(program, INTEGER, whole).simulated


# A tuple of fresh tensors has no fixed place.
STEP_BY_STEP = {"largest and where"}


@pytest.mark.skipif(path() is None, reason="onednn-cpu-gomp is not installed")
@pytest.mark.parametrize("name", NETS)
def test_tied_to_memory_computes_what_step_by_step_computes(name):
    """Other images in between, another layout and another batch leave nothing behind."""
    *_, program, whole, x = build(name)
    model = QuantizedModel(program, INTEGER, whole)
    other = torch.randn(x.shape, generator=torch.Generator().manual_seed(9))
    wide = x.to(memory_format=torch.channels_last) if x.dim() == 4 else x
    for images in (x, other, x, wide, x[:1], other[:3], x):
        expected = model.values(images.clone())[program.result]
        got = model(images)
        assert torch.equal(got, expected)
        assert got.data_ptr() != model(images).data_ptr()
    tied = {key: plan is not None for key, plan in model._plans.items()}
    assert all(tied.values()) == (name not in STEP_BY_STEP), tied


@pytest.mark.skipif(path() is None, reason="onednn-cpu-gomp is not installed")
def test_threads_share_a_model():
    *_, program, whole, x = build("resnet block")
    model = QuantizedModel(program, INTEGER, whole)
    batches = [torch.randn(x.shape, generator=torch.Generator().manual_seed(seed)) for seed in range(4)]
    expected = [model(batch) for batch in batches]
    wrong = []

    def work(index):
        wrong.extend(index for _ in range(30) if not torch.equal(model(batches[index]), expected[index]))

    threads = [threading.Thread(target=work, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
