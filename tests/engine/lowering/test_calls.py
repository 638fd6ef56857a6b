"""What a stored program may name: tensor operations of torch, and nothing that runs code or opens files."""

import json
import operator

import pytest
import torch
import torch.nn.functional as F
from torch import fx, nn

from engine.errors import EngineError
from engine.lowering.graph.calls import decode, encode, function, function_name, names_in, pooling
from engine.lowering.graph.kinds import kind
from engine.lowering.graph.trace import trace


def node(target, op="call_function", args=()):
    graph = fx.Graph()
    return graph.create_node(op, target, (graph.placeholder("x"), *args))


@pytest.mark.parametrize(
    "target",
    [
        torch.relu,
        F.relu,
        torch.flatten,
        F.pad,
        operator.add,
        operator.getitem,
        torch.cat,
        F.gelu,
        F.interpolate,
        F.adaptive_avg_pool2d,
        F.softmax,
    ],
)
def test_functions_by_name_and_back(target):
    assert function(function_name(node(target))) is target


def test_methods_and_attributes():
    x = torch.randn(2, 3, 4)
    assert function(function_name(node("flatten", "call_method")))(x, 1).shape == (2, 12)
    assert function(function_name(node(getattr, args=("shape",))))(x, "shape") == (2, 3, 4)


def test_methods_that_torchs_own_list_leaves_out():
    x = torch.randn(2, 6)
    assert function(function_name(node("unflatten", "call_method")))(x, 1, (2, 3)).shape == (2, 2, 3)
    assert torch.equal(function(function_name(node("new_zeros", "call_method")))(x, 3), torch.zeros(3))
    assert torch.equal(function(function_name(node(F.selu_)))(x.clone()), F.selu(x))


@pytest.mark.parametrize("target", [print, eval, torch.load, json.loads, lambda x: x])
def test_a_graph_with_other_functions_is_refused(target):
    with pytest.raises(EngineError, match="not a tensor operation") as raised:
        function_name(node(target))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "name",
    [
        "os.system",
        "builtins.eval",
        "torch.load",
        "torch.save",
        "torch.hub.load",
        "torch.os",
        "torch.from_file",
        "F.torch",
        "Tensor.__class__",
        "Tensor.__reduce_ex__",
        "Tensor.share_memory_x",
        "attribute.__class__",
        "attribute.grad_fn",
        "operator.methodcaller",
        "operator.attrgetter",
        "",
        "torch",
    ],
)
def test_a_file_that_asks_for_anything_else_is_refused(name):
    with pytest.raises(EngineError, match="not a tensor operation"):
        function(name)


VALUES = [
    None,
    True,
    3,
    -2.5,
    "same",
    (1, (2, 3)),
    [1, [2]],
    slice(None, 4, 2),
    {"dim": 1, "keepdim": True},
    torch.float32,
    torch.channels_last,
    ...,
    (slice(None), None, ..., 0),
    0.1 + 0.2,
    1e-300,
    float("inf"),
    [],
    (),
]


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_arguments_through_json(value):
    back = decode(json.loads(json.dumps(encode(value))), lambda name: name)
    assert back == value
    assert type(back) is type(value)


def test_nodes_are_named_in_order():
    graph = fx.Graph()
    a, b = graph.placeholder("a"), graph.placeholder("b")
    encoded = json.loads(json.dumps(encode(([a, (b, 1)], slice(b, None), {"k": a}), lambda n: f"{n.name}:q")))
    assert names_in(encoded) == ["a:q", "b:q", "b:q", "a:q"]
    found = iter([10, 20, 30, 40])
    assert decode(encoded, lambda _: next(found)) == ([10, (20, 1)], slice(30, None), {"k": 40})


@pytest.mark.parametrize("value", [object(), {1, 2}, print, torch.zeros(2)])
def test_arguments_without_a_stored_form(value):
    with pytest.raises(EngineError, match="cannot be stored"):
        encode(value)


@pytest.mark.parametrize("value", [{"torch": "load"}, {"torch": "nn"}, {"python": "1"}, {"torch": "nothing"}])
def test_forged_arguments(value):
    with pytest.raises(EngineError, match="damaged"):
        decode(value, str)


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (nn.MaxPool2d(3), ((3, 3), (3, 3), (0, 0), (1, 1), False)),
        (nn.MaxPool2d((3, 2), stride=2, padding=(1, 0), dilation=(1, 2), ceil_mode=True), ((3, 2), (2, 2), (1, 0), (1, 2), True)),
        (lambda x: F.max_pool2d(x, 2), ((2, 2), (2, 2), (0, 0), (1, 1), False)),
        (lambda x: F.max_pool2d(x, 3, 2, 1, ceil_mode=True), ((3, 3), (2, 2), (1, 1), (1, 1), True)),
        (lambda x: F.max_pool2d(x, kernel_size=(3, 2), padding=1, dilation=2), ((3, 2), (3, 2), (1, 1), (2, 2), False)),
        (lambda x: torch.max_pool2d(x, [2], stride=1), ((2, 2), (1, 1), (0, 0), (1, 1), False)),
    ],
)
def test_the_geometry_of_pooling_however_it_is_written(call, expected):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.call = call

        def forward(self, x):
            return self.call(x)

    graph = trace(Model().eval(), torch.randn(2, 3, 12, 12)).module.graph
    (pool,) = [n for n in graph.nodes if kind(n) == "max_pool"]
    keys = ("kernel", "stride", "padding", "dilation", "ceil_mode")
    assert tuple(pooling(pool)[key] for key in keys) == expected
