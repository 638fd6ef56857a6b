"""What traces: shapes known, the batch left free, the model untouched."""

import copy
import inspect
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from engine.errors import EngineError
from engine.lowering.graph.structured import structured
from engine.lowering.graph.trace import trace
from engine.models.simplecnn import SimpleCNN

BATCHES = (1, 2, 5, 7)
NAMES = ["x", "conv1", "bn1", "relu", "pool", "conv2", "bn2", "relu_1", "pool_1", "flatten", "fc1", "relu_2", "fc2", "output"]


class Net(nn.Module):
    """A 1x1 convolution, then whatever the test gives."""

    def __init__(self, forward, channels=4):
        super().__init__()
        self.conv = nn.Conv2d(3, channels, 1)
        self.bn = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.given = forward

    def forward(self, x):
        return self.given(self, self.conv(x))


def same_padding(net: Net, x: Tensor) -> Tensor:
    height, width = x.shape[-2:]
    tall = max((math.ceil(height / 2) - 1) * 2 + 3 - height, 0)
    wide = max((math.ceil(width / 2) - 1) * 2 + 3 - width, 0)
    return F.max_pool2d(F.pad(x, [wide // 2, wide - wide // 2, tall // 2, tall - tall // 2]), 3, 2)


def odd_heights(net: Net, x: Tensor) -> Tensor:
    n, c, h, w = x.shape
    if h % 2:
        x = F.pad(x, (0, 0, 0, 1))
    if w % 2 == 1:
        x = x * 2
    return x.reshape(n, c, (h + h % 2) * w)


def swapped_batch_check(net: Net, x: Tensor) -> Tensor:
    doubled = torch.cat([x, x])
    return doubled[: x.shape[0]] if doubled.shape[0] == 2 * x.size(0) else x * 0


def statement_in_place(net: Net, x: Tensor) -> Tensor:
    net.relu(x)
    return x * 2


def method_in_place(net: Net, x: Tensor) -> Tensor:
    x.clamp_(0, 0.5)
    return x + 1


def read_before_in_place(net: Net, x: Tensor) -> Tensor:
    before = x * 3
    after = net.relu(x)
    return before + after + x


def view_of_what_changes(net: Net, x: Tensor) -> Tensor:
    before = x.view(x.size(0), -1)
    part = before[:, 3:]
    x.relu_().add_(1)
    return part * before.sum()


def changed_through_a_view(net: Net, x: Tensor) -> Tensor:
    flat = x.flatten(2)
    flat.mul_(2)
    return x - 1


def half_changed(net: Net, x: Tensor) -> Tensor:
    first, second = x[:, :2], x[:, 2:]
    return torch.cat([F.relu(first, inplace=True), second], 1)


def changed_under_two_names(net: Net, x: Tensor) -> Tensor:
    y = x
    x += 1
    part = x[:, :2]
    part *= 3
    x[:, 1:3] -= 0.5
    return y * 2


FORWARDS = {
    "odd": odd_heights,
    "same": same_padding,
    "unpacked shape": lambda s, x: (lambda n, c, h, w: x.reshape(n, c * h * w))(*x.shape),
    "view": lambda s, x: x.view(x.size(0), -1),
    "sizes by keyword": lambda s, x: x.reshape(x.size(dim=0), x.size(dim=1), -1),
    "tail of shape": lambda s, x: x.new_zeros(x.shape[1:]) + x,
    "chunk": lambda s, x: (lambda a, b: torch.relu(a) + b)(*x.chunk(2, 1)),
    "split": lambda s, x: (lambda a, b: torch.cat([b, a], 1))(*x.split([1, 3], 1)),
    "unbind": lambda s, x: sum(x.unbind(1)),
    "functional": lambda s, x: torch.softmax(F.avg_pool2d(x, 2).mean((2, 3)), -1),
    "method kwargs": lambda s, x: s.bn(input=x).flatten(start_dim=1),
    "rank": lambda s, x: x.flatten(1) if x.dim() == 4 and x.ndim == 4 else x,
    "dtype": lambda s, x: x.to(torch.float64).to(x.dtype) if x.dtype == torch.float32 else x,
    "metadata": lambda s, x: x * 2 if x.is_floating_point() else x,
    "batch identity": swapped_batch_check,
    "in place statement": statement_in_place,
    "in place method": method_in_place,
    "in place, old reader": read_before_in_place,
    "in place, a view": view_of_what_changes,
    "in place, through a view": changed_through_a_view,
    "in place, a half": half_changed,
    "in place, two names": changed_under_two_names,
    "strides": lambda s, x: x.as_strided(
        (x.size(0), 4, x.shape[2] // 2, x.shape[3]), (4 * x.shape[2] * x.shape[3], x.shape[2] * x.shape[3], x.shape[3], 1)
    ),
    "constant": lambda s, x: x * torch.tensor([1.0, 2.0, 3.0, 4.0]).view(4, 1, 1),
}


@pytest.mark.parametrize("name", FORWARDS)
@pytest.mark.parametrize("size", [(8, 8), (7, 5)])
def test_traces_whole_and_serves_every_batch(name, size):
    torch.manual_seed(0)
    model = Net(FORWARDS[name]).eval()
    traced = trace(model, torch.randn(2, 3, *size))
    assert traced.untraced == ()
    assert traced.max_abs_delta == 0
    for batch in BATCHES:
        x = torch.randn(batch, 3, *size)
        assert torch.equal(traced.module(x.clone()), model(x.clone()))
        # The graph runs channels last, where a view of a tensor may be a copy.
        torch.testing.assert_close(traced.module(x.to(memory_format=torch.channels_last)), model(x.clone()))


def test_simplecnn_rows_shapes_and_dtypes():
    module = trace(SimpleCNN().eval(), torch.randn(2, 3, 32, 32)).module
    assert [node.name for node in module.graph.nodes] == NAMES
    shapes = {node.name: node.meta["shape"] for node in module.graph.nodes if "shape" in node.meta}
    assert shapes["x"] == (None, 3, 32, 32)
    assert shapes["pool_1"] == (None, 64, 8, 8)
    assert shapes["flatten"] == (None, 4096)
    assert shapes["fc2"] == (None, 10)
    assert {node.meta["dtype"] for node in module.graph.nodes if "dtype" in node.meta} == {torch.float32}


def test_one_example_image_is_enough():
    model = SimpleCNN().eval()
    module = trace(model, torch.randn(1, 3, 32, 32)).module
    x = torch.randn(3, 3, 32, 32)
    assert torch.equal(module(x), model(x))


class Options(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)

    def forward(self, x, features=False, mask=None, *more, scale: float = 2.0, **named):
        y = self.conv(x)
        if features:
            return y
        if mask is not None:
            y = y * mask
        return y.mean((2, 3)) * scale


def test_other_arguments_keep_their_defaults():
    torch.manual_seed(0)
    model = Options().eval()
    traced = trace(model, torch.randn(2, 3, 8, 8))
    assert traced.untraced == ()
    assert [node.op for node in traced.module.graph.nodes].count("placeholder") == 1
    x = torch.randn(5, 3, 8, 8)
    assert torch.equal(traced.module(x), model(x))


class Failing(nn.Module):
    def forward(self, x):
        y = x.relu()
        return y @ x.new_zeros(7, 7, 7)


def test_a_model_that_does_not_run_is_one_line_with_its_place():
    lines, first = inspect.getsourcelines(Failing)
    line = first + next(i for i, text in enumerate(lines) if "@" in text)
    with pytest.raises(EngineError) as raised:
        trace(Failing().eval(), torch.randn(2, 3, 8, 8))
    text = str(raised.value)
    assert "\n" not in text
    assert "Failing.forward" in text
    assert "(2, 3, 8, 8)" in text
    assert f"{__file__}:{line}" in text


@pytest.mark.parametrize("result", [lambda x: (x, x + 1), lambda x: {"out": x, "none": None}, lambda x: [x, 3]])
def test_results_that_hold_tensors_are_traced_as_they_are(result):
    class Returns(nn.Module):
        def forward(self, x):
            return result(x)

    x = torch.randn(2, 3, 8, 8)
    graph = trace(Returns().eval(), x).module
    found, expected = structured(graph)(x), result(x)
    assert type(found) is type(expected)
    assert [str(leaf) for leaf in tree_leaves(found)] == [str(leaf) for leaf in tree_leaves(expected)]


def test_results_without_a_tensor_are_refused():
    class Returns(nn.Module):
        def forward(self, x):
            return {"size": 3}

    with pytest.raises(EngineError, match="Returns returns dict without a tensor"):
        trace(Returns().eval(), torch.randn(2, 3, 8, 8))


class Breaks(nn.Module):
    """Cannot be traced; keeps a constant that fx would store on the model."""

    def __init__(self, fails=False):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)
        self.register_buffer("seen", torch.ones(3))
        self.fails = fails

    def forward(self, x):
        y = self.conv(x) * torch.tensor(2.0)
        if y.sum() > 1e9:
            return y
        if self.fails:
            raise ValueError("no")
        return y + self.seen.view(3, 1, 1)


@pytest.mark.parametrize("model", [SimpleCNN(), Breaks(), Breaks(fails=True), Net(FORWARDS["constant"])], ids=lambda m: type(m).__name__)
def test_the_model_and_torch_are_as_before(model):
    model.eval()
    state, attributes = copy.deepcopy(model.state_dict()), {m: set(vars(m)) for m in model.modules()}
    patched = nn.Module.__call__, nn.Module.__getattr__, torch.relu, F.relu, math.ceil
    failed = None
    try:
        trace(model, torch.randn(2, 3, 32, 32))
    except EngineError as error:
        failed = error
    assert (failed is not None) == getattr(model, "fails", False)
    assert (nn.Module.__call__, nn.Module.__getattr__, torch.relu, F.relu, math.ceil) == patched
    assert {m: set(vars(m)) for m in model.modules()} == attributes
    after = model.state_dict()
    assert list(after) == list(state)
    assert all(torch.equal(after[name], value) for name, value in state.items())
    assert not any(m.training for m in model.modules())


def test_what_a_graph_cannot_change_through_a_view_is_not_traced():
    def changed(net, x):
        F.relu(x.transpose(2, 3)[:, 1:], inplace=True)
        return x * 2

    traced = trace(Net(changed).eval(), torch.randn(2, 3, 8, 8))
    assert [leaf.path for leaf in traced.untraced] == ["model"] and "through another view" in traced.untraced[0].reason


def test_views_become_reshapes_so_that_channels_last_runs():
    model = Net(lambda s, x: x.view(x.size(0), -1)).eval()
    module = trace(model, torch.randn(2, 3, 4, 4)).module
    x = torch.randn(3, 3, 4, 4)
    torch.testing.assert_close(module(x.to(memory_format=torch.channels_last)), model(x))
