"""However an operation is written, it counts as what it is."""

import operator

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from engine.lowering.graph.kinds import kind, source, tensor_inputs
from engine.lowering.graph.trace import trace


class Calls(nn.Module):
    def __init__(self, function, module=None):
        super().__init__()
        self.module, self.function = module, function

    def forward(self, x):
        return self.function(self, x)


def last(function, module=None):
    graph = trace(Calls(function, module).eval(), torch.randn(2, 4, 8, 8)).module
    return list(graph.graph.nodes)[-2], graph


SPELLINGS = {
    "relu": [
        lambda s, x: F.relu(x),
        lambda s, x: torch.relu(x),
        lambda s, x: x.relu(),
        lambda s, x: s.module(x),
        lambda s, x: F.relu(x, inplace=True),
        lambda s, x: x.relu_(),
        lambda s, x: torch.relu_(x),
        lambda s, x: F.relu(input=x),
    ],
    "add": [
        lambda s, x: x + x.abs(),
        lambda s, x: torch.add(x, x.abs()),
        lambda s, x: x.add(x.abs()),
        lambda s, x: operator.iadd(x, x.abs()),
        lambda s, x: x.add_(x.abs()),
        lambda s, x: 1 + x,
    ],
    "reshape": [
        lambda s, x: torch.flatten(x, 1),
        lambda s, x: x.flatten(1),
        lambda s, x: nn.Flatten.forward(nn.Flatten(), x),
        lambda s, x: x.view(x.size(0), -1),
        lambda s, x: x.reshape(x.shape[0], -1),
        lambda s, x: x.permute(0, 2, 3, 1),
        lambda s, x: x.transpose(1, 2),
        lambda s, x: x[:, :1].squeeze(1),
        lambda s, x: torch.unsqueeze(x, 1),
    ],
    "mean": [lambda s, x: x.mean((2, 3)), lambda s, x: torch.mean(x, (2, 3)), lambda s, x: x.mean(dim=(-2, -1), keepdim=True)],
    "max_pool": [lambda s, x: F.max_pool2d(x, 2), lambda s, x: torch.max_pool2d(x, 2), lambda s, x: F.max_pool2d(x, kernel_size=2)],
    "avg_pool": [lambda s, x: F.avg_pool2d(x, 2)],
    "adaptive_avg_pool": [lambda s, x: F.adaptive_avg_pool2d(x, 1), lambda s, x: F.adaptive_avg_pool2d(x, output_size=(1, 1))],
    "relu6": [lambda s, x: F.relu6(x)],
    "hardswish": [lambda s, x: F.hardswish(x)],
    "identity": [lambda s, x: x.contiguous(), lambda s, x: x.clone(), lambda s, x: F.dropout(x, 0.5, s.training)],
    "slice": [lambda s, x: x[:, ::2], lambda s, x: x[..., 1:]],
    "cat": [lambda s, x: torch.cat([x, x]), lambda s, x: torch.concat((x, x), 1)],
    "pad": [
        lambda s, x: F.pad(x, (1, 1)),
        lambda s, x: F.pad(x, (1, 1), mode="constant", value=0.0),
        lambda s, x: F.pad(x, (1, 1, 1, 1), mode="reflect"),
        lambda s, x: F.pad(x, (1, 1, 1, 1), "circular"),
    ],
    "shuffle": [lambda s, x: F.pixel_shuffle(x, 2), lambda s, x: F.channel_shuffle(x, 2)],
    "other": [
        lambda s, x: F.pad(x, (1, 1), value=1.0),
        lambda s, x: x.chunk(2, 1)[0],
        lambda s, x: F.softsign(x),
        lambda s, x: x.unbind(1)[1],
    ],
    "sigmoid": [lambda s, x: torch.sigmoid(x), lambda s, x: x.sigmoid(), lambda s, x: F.sigmoid(x)],
}


@pytest.mark.parametrize(("expected", "function"), [(k, f) for k, functions in SPELLINGS.items() for f in functions])
def test_functions_and_methods(expected, function):
    node, _graph = last(function, nn.ReLU(inplace=True))
    assert kind(node) == expected


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        (nn.Conv2d(4, 4, 1), "conv"),
        (nn.ConvTranspose2d(4, 4, 1), "conv_transpose"),
        (nn.BatchNorm2d(4), "bn"),
        (nn.Linear(8, 4), "linear"),
        (nn.ReLU(), "relu"),
        (nn.ReLU6(), "relu6"),
        (nn.Hardswish(), "hardswish"),
        (nn.MaxPool2d(2), "max_pool"),
        (nn.AvgPool2d(2), "avg_pool"),
        (nn.AdaptiveAvgPool2d(1), "adaptive_avg_pool"),
        (nn.Flatten(), "reshape"),
        (nn.Identity(), "identity"),
        (nn.Dropout(), "identity"),
        (nn.Sigmoid(), "sigmoid"),
        (nn.Softsign(), "other"),
        (nn.GroupNorm(2, 4), "other"),
    ],
)
def test_modules(module, expected):
    for function in (lambda s, x: s.module(x), lambda s, x: s.module(input=x)):
        node, graph = last(function, module)
        assert kind(node) == expected
        assert source(node) is next(iter(graph.graph.nodes))


def test_an_active_dropout_moves_values():
    graph = torch.fx.Graph()
    x = graph.placeholder("x")
    node = graph.call_function(F.dropout, (x,), {"training": True})
    assert kind(node) == "other"
    assert kind(x) == "placeholder"
    assert kind(graph.output(node)) == "output"


def test_a_subclass_is_not_its_parent():
    class Scaled(nn.Conv2d):
        def forward(self, x):
            return super().forward(x) * 2

    graph = torch.fx.Graph()
    node = graph.call_module("conv", (graph.placeholder("x"),))
    torch.fx.GraphModule({"conv": Scaled(3, 3, 1)}, graph)
    assert kind(node) == "other"


def test_sizes_are_no_tensor_inputs():
    node, _ = last(lambda s, x: x.reshape(x.size(0), -1))
    assert [n.name for n in tensor_inputs(node)] == ["x"]
