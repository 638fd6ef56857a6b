"""Functional convolutions and linears become modules that compute the same."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from engine.lowering.graph.kinds import kind
from engine.lowering.graph.normalize import functional_to_modules
from engine.lowering.graph.trace import trace


class Same(nn.Conv2d):
    """A convolution with its own forward, as in many published models."""

    def forward(self, x):
        return F.conv2d(F.pad(x, (1, 1, 1, 1)), self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


class Around(nn.Module):
    def __init__(self, inner, forward=None):
        super().__init__()
        self.inner, self.given = inner, forward

    def forward(self, x):
        return self.given(self.inner, x) if self.given else self.inner(x)


def owner(**parameters):
    module = nn.Module()
    for name, value in parameters.items():
        setattr(module, name, value if isinstance(value, nn.Module) else nn.Parameter(value))
    return module


CASES = {
    "subclass": (Around(Same(4, 6, 3, stride=2, groups=2)), (4, 9, 9), "conv"),
    "no bias": (Around(Same(4, 6, 3, bias=False)), (4, 9, 9), "conv"),
    "same": (Around(owner(w=torch.randn(6, 4, 3, 3)), lambda o, x: F.conv2d(x, o.w, padding="same")), (4, 9, 9), "conv"),
    "keywords": (
        Around(
            owner(w=torch.randn(6, 2, 3, 3), b=torch.randn(6)), lambda o, x: F.conv2d(input=x, weight=o.w, bias=o.b, groups=2, dilation=2)
        ),
        (4, 9, 9),
        "conv",
    ),
    "1d": (Around(owner(w=torch.randn(6, 4, 3)), lambda o, x: F.conv1d(x, o.w, None, 2, 1)), (4, 9), "conv"),
    "3d": (Around(owner(w=torch.randn(6, 4, 3, 3, 3)), lambda o, x: F.conv3d(x, o.w, None, (1, 2, 1), 1)), (4, 5, 5, 5), "conv"),
    "product": (Around(owner(w=torch.randn(9, 6)), lambda o, x: x @ o.w), (4, 9), "linear"),
    "product and sum": (Around(owner(w=torch.randn(9, 6), b=torch.randn(6)), lambda o, x: o.b + torch.matmul(x, o.w)), (4, 9), "linear"),
    "method": (Around(owner(w=torch.randn(9, 6)), lambda o, x: x.mm(o.w)), (9,), "linear"),
    "addmm": (Around(owner(w=torch.randn(9, 6), b=torch.randn(6)), lambda o, x: torch.addmm(o.b, x, o.w)), (9,), "linear"),
    "linear": (Around(owner(w=torch.randn(6, 9), b=torch.randn(6)), lambda o, x: F.linear(x, o.w, o.b)), (4, 9), "linear"),
}


@pytest.mark.parametrize("name", CASES)
def test_becomes_a_module_with_the_same_result(name):
    torch.manual_seed(0)
    model, shape, expected = CASES[name]
    model.eval()
    graph = trace(model, torch.randn(2, *shape)).module
    assert functional_to_modules(graph) == ("inner",)
    graph.graph.lint()
    node = next(n for n in graph.graph.nodes if str(n.target) == "inner")
    assert kind(node) == expected
    assert node.meta["dtype"] == torch.float32
    x = torch.randn(3, *shape)
    torch.testing.assert_close(graph(x), model(x))
    if isinstance(model.inner, Same):
        assert type(model.inner) is Same


LEFT = {
    "weight read twice": lambda o, x: F.linear(x, o.w) + F.linear(x.relu(), o.w),
    "computed weight": lambda o, x: F.linear(x, o.w * 2),
    "a second weight of the owner": lambda o, x: F.linear(F.linear(x, o.w), o.v),
    "another parameter of the owner": lambda o, x: F.linear(x, o.w) * o.v.sum(),
    "a product with two readers": lambda o, x: x @ o.w + (o.v @ o.w).sum(0),
    "a matrix on the left": lambda o, x: (o.w @ x.t()).t(),
    "a sum with more than a row": lambda o, x: (x @ o.w)[:, None] + o.v,
    "another factor of addmm": lambda o, x: torch.addmm(o.v[0], x, o.w, beta=2),
    "a child of the owner": lambda o, x: o.child(F.linear(x, o.w)),
}


@pytest.mark.parametrize("name", LEFT)
def test_what_others_read_is_left_alone(name):
    torch.manual_seed(0)
    model = Around(owner(w=torch.randn(9, 9), v=torch.randn(9, 9), child=nn.Linear(9, 9)), LEFT[name]).eval()
    graph = trace(model, torch.randn(2, 9)).module
    functional_to_modules(graph)
    graph.graph.lint()
    x = torch.randn(3, 9)
    torch.testing.assert_close(graph(x), model(x))


class Root(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.bias = nn.Parameter(torch.randn(6, 3, 3, 3)), nn.Parameter(torch.randn(6))
        self.second, self.child = nn.Parameter(torch.randn(5, 6)), nn.ReLU()

    def forward(self, x):
        return F.linear(self.child(F.conv2d(x, self.first, self.bias)).mean((2, 3)), self.second)


@pytest.mark.parametrize(
    ("model", "paths"), [(Root(), ("first", "second")), (Around(Root()), ("inner.first", "inner.second"))], ids=["root", "inner"]
)
def test_weights_of_one_owner_are_modules_of_their_own(model, paths):
    torch.manual_seed(0)
    names = set(model.state_dict())
    graph = trace(model.eval(), torch.randn(2, 3, 5, 5)).module
    assert functional_to_modules(graph) == paths
    graph.graph.lint()
    assert set(graph.state_dict()) == {f"{paths[0]}.weight", f"{paths[0]}.bias", f"{paths[1]}.weight"}
    x = torch.randn(3, 3, 5, 5)
    torch.testing.assert_close(graph(x), model(x))
    assert set(model.state_dict()) == names


def test_a_weight_of_a_module_that_is_called_whole_stays_there():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(9, 9)

        def forward(self, x):
            return F.linear(self.inner(x), self.inner.weight)

    graph = trace(Tied().eval(), torch.randn(2, 9)).module
    assert functional_to_modules(graph) == ()
