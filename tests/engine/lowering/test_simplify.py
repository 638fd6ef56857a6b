"""Whatever way a batch normalization or a constant weight is written, it is found and folded, and the graph computes the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from given_net import Net
from torch import Tensor, nn

from engine.lowering.graph.fuse import find_pairs, fuse
from engine.lowering.graph.kinds import kind
from engine.lowering.graph.simplify import simplify
from engine.lowering.graph.trace import trace


class NormAct(nn.BatchNorm2d):
    """As image model packages have it: normalization, dropout and activation in one class, through the function."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.drop, self.act = nn.Identity(), nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x = F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, self.training, 0.1, self.eps)
        return self.act(self.drop(x))  # type: ignore[no-any-return]


class FrozenNorm(nn.Module):
    """Statistics and parameters as buffers, applied as a multiplication and an addition."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        for name in ("weight", "running_var"):
            self.register_buffer(name, torch.rand(channels) + 0.5)
        for name in ("bias", "running_mean"):
            self.register_buffer(name, torch.randn(channels))

    def forward(self, x: Tensor) -> Tensor:
        w, b, v, m = (getattr(self, name).reshape(1, -1, 1, 1) for name in ("weight", "bias", "running_var", "running_mean"))
        scale = w * (v + 1e-5).rsqrt()
        return x * scale + (b - m * scale)  # type: ignore[no-any-return]


class Held(nn.Module):
    """One number a channel, under a name that no normalization has."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.randn(channels, 1, 1))


class LinearNorm(nn.Module):
    """A linear layer on tokens whose normalization sees them as rows."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.linear, self.bn = nn.Linear(inputs, outputs, bias=False), nn.BatchNorm1d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = self.linear(x)
        return self.bn(x.flatten(0, 1)).reshape_as(x)  # type: ignore[no-any-return]


class StandardizedConv(nn.Conv2d):
    """Weight standardization through batch normalization of the weight."""

    def forward(self, x: Tensor) -> Tensor:
        rows = self.weight.reshape(1, self.out_channels, -1)
        weight = F.batch_norm(rows, None, None, training=True, momentum=0.0, eps=1e-6).reshape_as(self.weight)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class ScaledStandardizedConv(nn.Conv2d):
    """With a gain for each channel and a fixed scale."""

    def __init__(self, *sizes: int, **more: Any) -> None:
        super().__init__(*sizes, **more)
        self.gain = nn.Parameter(torch.rand(self.out_channels, 1, 1, 1) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        var, mean = torch.var_mean(self.weight, dim=(1, 2, 3), keepdim=True, unbiased=False)
        weight = (self.weight - mean) * torch.rsqrt(var + 1e-6) * (self.gain * 0.3)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


def conv(inputs: int = 3, outputs: int = 8, kernel: int = 3, **more: Any) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, padding=more.pop("padding", 1), **more)


def functional(s: Any, x: Tensor) -> Tensor:
    n = s.n
    return F.relu(F.batch_norm(s.c(x), n.running_mean, n.running_var, n.weight, n.bias, False, 0.1, n.eps))


# Network; how many normalizations fold into the layer before them.
NORMS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "a class of its own with its activation": (lambda: Net(lambda s, x: s.n(s.c(x)), c=conv(), n=NormAct(8)), 1),
    "the function": (lambda: Net(functional, c=conv(), n=nn.BatchNorm2d(8)), 1),
    "torch's function": (
        lambda: Net(lambda s, x: torch.batch_norm(s.c(x), s.n.weight, s.n.bias, s.n.running_mean, s.n.running_var, False, 0.1, 1e-5, False),
                    c=conv(), n=nn.BatchNorm2d(8)), 1,
    ),
    "synchronized": (lambda: Net(lambda s, x: s.n(s.c(x)).relu(), c=conv(), n=nn.SyncBatchNorm(8)), 1),
    "frozen": (lambda: Net(lambda s, x: s.n(s.c(x)).relu(), c=conv(), n=FrozenNorm(8)), 1),
    "behind a dropout and an identity": (
        lambda: Net(lambda s, x: s.i(s.n(s.d(s.i(s.c(x))))).relu(), c=conv(), d=nn.Dropout(), i=nn.Identity(), n=nn.BatchNorm2d(8)), 1,
    ),
    "of tokens as rows": (
        lambda: Net(lambda s, x: s.m(F.hardswish(s.l(x.flatten(2).transpose(1, 2)))).mean(1), l=LinearNorm(3, 16), m=LinearNorm(16, 8)), 2,
    ),
    "behind a transposed convolution": (
        lambda: Net(lambda s, x: s.n(s.t(s.c(x))), c=conv(), t=nn.ConvTranspose2d(8, 6, 2, stride=2), n=nn.BatchNorm2d(6)), 1,
    ),
    "behind a grouped transposed convolution": (
        lambda: Net(lambda s, x: s.n(s.t(s.c(x))), c=conv(), t=nn.ConvTranspose2d(8, 6, 2, stride=2, groups=2), n=nn.BatchNorm2d(6)), 1,
    ),
    "a scale alone": (lambda: Net(lambda s, x: s.c(x) * s.g, c=conv(), g=nn.Parameter(torch.rand(8, 1, 1))), 1),
    "a shift that a module of its own holds": (lambda: Net(lambda s, x: s.c(x) + s.v.value, c=conv(), v=Held(8)), 1),
    "used twice through the function": (
        lambda: Net(lambda s, x: s.n(s.c(x)) + s.n(s.e(x)), c=conv(), e=conv(), n=NormAct(8)), 2,
    ),
}  # fmt: skip


def prepared(make: Callable[[], nn.Module]) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    model = make().eval().requires_grad_(False)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_mean.normal_()  # type: ignore[union-attr]
            module.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
            module.weight.uniform_(0.5, 2)
            module.bias.normal_()
    return model, torch.randn(4, 3, 8, 8)


def close(got: Tensor, wanted: Tensor) -> bool:
    return torch.allclose(got, wanted, rtol=1e-4, atol=1e-4 * float(wanted.abs().max()))


@pytest.mark.parametrize("name", NORMS)
def test_a_normalization_is_folded_however_it_is_written(name: str) -> None:
    make, count = NORMS[name]
    model, x = prepared(make)
    gm = simplify(trace(model, x[:2]).module, x)
    pairs = find_pairs(gm)
    assert [pair.reason for pair in pairs] == [None] * count
    fused, measured, _ = fuse(gm, x, pairs)
    assert not any(kind(node) == "bn" or node.target is F.batch_norm for node in fused.graph.nodes)
    assert all(pair.max_abs_delta is not None and pair.max_abs_delta < 1e-4 for pair in measured)
    assert close(fused(x), model(x)) and close(fused(x[:1]), model(x[:1]))


@pytest.mark.parametrize("layer", [StandardizedConv, ScaledStandardizedConv])
@pytest.mark.parametrize("groups", [1, 3])
def test_a_weight_that_follows_from_parameters_is_computed_once(layer: Callable[..., nn.Module], groups: int) -> None:
    model, x = prepared(lambda: Net(lambda s, x: s.d(s.c(x).relu()), c=layer(3, 9, 3, groups=groups), d=layer(9, 4, 3, padding=1)))
    gm = simplify(trace(model, x[:2]).module, x)
    assert [(kind(node), str(node.target)) for node in gm.graph.nodes if node.op == "call_module"] == [("conv", "c"), ("conv", "d")]
    assert len(gm.graph.nodes) == 5 and close(gm(x), model(x))


READERS: dict[str, tuple[Callable[[], nn.Module], bool]] = {
    "a convolution without padding": (lambda: Net(lambda s, x: s.c(s.n(x)), n=nn.BatchNorm2d(3), c=conv(padding=0)), True),
    "a grouped one": (lambda: Net(lambda s, x: s.c(s.n(x)), n=nn.BatchNorm2d(3), c=conv(3, 6, padding=0, groups=3, bias=False)), True),
    "one with zeros around": (lambda: Net(lambda s, x: s.c(s.n(x)), n=nn.BatchNorm2d(3), c=conv(padding=1)), False),
    "a linear layer": (lambda: Net(lambda s, x: s.f(s.n(x.flatten(1))), n=nn.BatchNorm1d(192), f=nn.Linear(192, 5)), True),
    "two convolutions": (
        lambda: Net(lambda s, x: s.c(y := s.n(x)) + s.d(y), n=nn.BatchNorm2d(3), c=conv(padding=0), d=conv(padding=0)),
        False,
    ),
}


@pytest.mark.parametrize("name", READERS)
def test_a_normalization_before_its_layer_is_folded_where_that_is_exact(name: str) -> None:
    make, folded = READERS[name]
    model, x = prepared(make)
    gm = simplify(trace(model, x[:2]).module, x)
    assert any(kind(node) == "bn" for node in gm.graph.nodes) is not folded
    assert close(gm(x), model(x))


def test_parameters_of_the_model_itself_are_left_alone() -> None:
    model, x = prepared(lambda: Net(lambda s, x: s.c(s.n(x)), n=nn.BatchNorm2d(3), c=conv(padding=0)))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    wanted = model(x)
    simplify(trace(model, x[:2]).module, x)
    assert torch.equal(model(x), wanted) and all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_dropout_that_training_wants_stays() -> None:
    model, x = prepared(lambda: Net(lambda s, x: s.f(s.d(s.c(x).relu().flatten(1))), c=conv(), d=nn.Dropout(0.5), f=nn.Linear(512, 4)))
    gm = simplify(trace(model, x[:2]).module, x)
    assert any(isinstance(module, nn.Dropout) for module in gm.modules())


def test_a_constant_that_would_grow_is_not_stored() -> None:
    model, x = prepared(lambda: Net(lambda s, x: s.c(x) + s.p.expand(8, 8, 8).abs(), c=conv(), p=nn.Parameter(torch.rand(8, 1, 1))))
    gm = simplify(trace(model, x[:2]).module, x)
    assert sum(p.numel() for p in gm.parameters()) == sum(p.numel() for p in model.parameters()) and close(gm(x), model(x))
