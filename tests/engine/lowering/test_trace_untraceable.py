"""What cannot be traced is a leaf, as small as possible, and the report says where."""

import inspect

import numpy as np
import pytest
import torch
from torch import nn

from engine.errors import EngineError
from engine.lowering.graph.trace import trace

BATCHES = (1, 2, 5, 7)


class OnValues(nn.Module):
    def forward(self, x):
        if x.sum() > 0:  # here
            return x * 2
        return x * 3


class OnItem(nn.Module):
    def forward(self, x):
        scale = x.mean().item()
        if scale > -1e9:  # here
            return x * 2
        return x


class OnBool(nn.Module):
    def forward(self, x):
        if x.equal(x):  # here
            return x * 2
        return x


class OnList(nn.Module):
    def forward(self, x):
        if max(x.flatten().tolist()) > -1e9:  # here
            return x * 2
        return x


class OnBatchOne(nn.Module):
    def forward(self, x):
        if x.shape[0] == 1:  # here
            return x * 2
        return x


class OnBatchSize(nn.Module):
    def forward(self, x):
        return x * 2 if x.size(0) > 4 else x  # here


class OnBatchParity(nn.Module):
    def forward(self, x):
        if x.numel() % (4 * x[0].numel()) == 0:  # here
            return x * 2
        return x


class Numpy(nn.Module):
    def forward(self, x):
        return torch.from_numpy(np.maximum(x.detach().numpy(), 0))  # here


class OverBatch(nn.Module):
    def forward(self, x):
        return torch.stack([image * 2 for image in x])  # here


class OverRange(nn.Module):
    def forward(self, x):
        return torch.stack([x[i] * 2 for i in range(x.shape[0])])  # here


class Through(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)
        self.inner = inner
        self.relu = nn.ReLU()

    def forward(self, x):
        return self.relu(self.inner(self.conv(x))) + 1


def place(module_class):
    lines, first = inspect.getsourcelines(module_class)
    return f"{__file__}:{first + next(i for i, line in enumerate(lines) if '# here' in line)}"


def check(model, traced):
    for batch in BATCHES:
        x = torch.randn(batch, 3, 6, 6)
        assert torch.equal(traced.module(x), model(x))


UNTRACEABLE = [OnValues, OnItem, OnBool, OnList, OnBatchOne, OnBatchSize, OnBatchParity, Numpy, OverBatch, OverRange]


@pytest.mark.parametrize("kind", UNTRACEABLE, ids=lambda k: k.__name__)
@pytest.mark.parametrize("images", [1, 2])
def test_a_leaf_with_file_and_line(kind, images):
    torch.manual_seed(0)
    model = Through(kind()).eval()
    traced = trace(model, torch.randn(images, 3, 6, 6))
    (leaf,) = traced.untraced
    assert (leaf.path, leaf.kind, leaf.where) == ("inner", kind.__name__, place(kind))
    assert leaf.reason
    assert "\n" not in leaf.reason
    targets = [str(node.target) for node in traced.module.graph.nodes if node.op == "call_module"]
    assert targets == ["conv", "inner", "relu"]
    check(model, traced)


def test_only_the_innermost_module_stays_whole():
    torch.manual_seed(0)
    model = Through(Through(Through(OnValues()))).eval()
    traced = trace(model, torch.randn(2, 3, 6, 6))
    assert [leaf.path for leaf in traced.untraced] == ["inner.inner.inner"]
    targets = [str(node.target) for node in traced.module.graph.nodes if node.op == "call_module"]
    assert targets == [
        "conv", "inner.conv", "inner.inner.conv", "inner.inner.inner", "inner.inner.relu", "inner.relu", "relu",
    ]  # fmt: skip
    check(model, traced)


class OuterToo(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = OnValues()

    def forward(self, x):
        y = self.inner(x)
        return y if y.sum() > 1e9 else -y


def test_a_module_inside_a_leaf_is_not_reported():
    model = Through(OuterToo()).eval()
    traced = trace(model, torch.randn(2, 3, 6, 6))
    assert [leaf.path for leaf in traced.untraced] == ["inner"]
    check(model, traced)


def test_two_leaves_and_one_called_twice():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = Through(OnValues()), Through(OverBatch())

        def forward(self, x):
            return self.a(self.b(self.a(x)))

    model = Two().eval()
    traced = trace(model, torch.randn(2, 3, 6, 6))
    assert [leaf.path for leaf in traced.untraced] == ["a.inner", "b.inner"]
    check(model, traced)


def test_parameters_read_only_by_a_failed_attempt_leave_no_node():
    class Owner(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(3, 1, 1))

        def forward(self, x):
            y = x * self.weight
            return y if y.sum() > 1e9 else -y

    class Shares(nn.Module):
        def __init__(self):
            super().__init__()
            self.owner = Owner()

        def forward(self, x):
            return self.owner(x) * self.owner.weight

    model = Shares().eval()
    traced = trace(model, torch.randn(2, 3, 6, 6))
    assert [leaf.path for leaf in traced.untraced] == ["owner"]
    traced.module.graph.lint()
    check(model, traced)


def test_a_root_that_cannot_be_traced_is_one_leaf():
    model = OuterToo().eval()
    traced = trace(model, torch.randn(2, 3, 6, 6))
    assert [(leaf.path, leaf.kind) for leaf in traced.untraced] == [("model", "OuterToo")]
    assert [node.op for node in traced.module.graph.nodes] == ["placeholder", "call_module", "output"]
    check(model, traced)


def test_changes_through_a_view_that_a_graph_cannot_hold_keep_the_model_whole():
    class ThroughView(nn.Module):
        def forward(self, x):
            y = x * 1
            first = y[:, 0]
            y[:, 0] = 5
            return y + first[:, None]

    model = ThroughView().eval()
    traced = trace(model, torch.randn(2, 3, 6, 6))
    assert traced.max_abs_delta == 0
    assert len(traced.untraced) == 1
    check(model, traced)


def test_a_hook_that_changes_a_layer_keeps_what_calls_it_whole():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.seen = nn.Conv2d(3, 3, 1), nn.ReLU()
            self.conv.register_forward_hook(lambda module, args, output: output * 3 + 1)
            self.seen.register_forward_hook(lambda module, args, output: None)

        def forward(self, x):
            return self.seen(self.conv(x))

    model, x = nn.Sequential(Block(), nn.Conv2d(3, 2, 1)).eval(), torch.randn(3, 3, 4, 4)
    traced = trace(model, x)
    assert [(leaf.path, leaf.reason) for leaf in traced.untraced] == [("0", "a forward hook changes what 0.conv computes")]
    torch.testing.assert_close(traced.module(x), model(x))


def test_a_model_that_draws_at_random_is_told_apart():
    class Noisy(nn.Module):
        def forward(self, x):
            return x + torch.randn_like(x)

    with pytest.raises(EngineError, match="Noisy gives other logits for the same images"):
        trace(Noisy().eval(), torch.randn(2, 3, 4, 4))
