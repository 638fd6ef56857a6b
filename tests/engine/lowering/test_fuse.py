"""Folding against float64 arithmetic, and every refusal with its reason."""

import pytest
import torch
from torch import nn

from engine.lowering.graph.fuse import find_pairs, folded_layer, fuse
from engine.lowering.graph.trace import trace

LAYERS = {
    "conv1d": (lambda **k: nn.Conv1d(4, 6, 3, padding=1, **k), nn.BatchNorm1d, (4, 9)),
    "conv2d": (lambda **k: nn.Conv2d(4, 6, 3, stride=2, **k), nn.BatchNorm2d, (4, 9, 9)),
    "groups": (lambda **k: nn.Conv2d(4, 6, 3, groups=2, **k), nn.BatchNorm2d, (4, 9, 9)),
    "depthwise": (lambda **k: nn.Conv2d(4, 4, 3, groups=4, **k), nn.BatchNorm2d, (4, 9, 9)),
    "conv3d": (lambda **k: nn.Conv3d(4, 6, 2, **k), nn.BatchNorm3d, (4, 5, 5, 5)),
    "linear": (lambda **k: nn.Linear(12, 6, **k), nn.BatchNorm1d, (12,)),
}


def settle(norm):
    """Statistics far from the identity."""
    channels = norm.num_features
    norm.running_mean.copy_(torch.randn(channels) * 2)
    norm.running_var.copy_(torch.rand(channels) * 4 + 0.05)
    if norm.affine:
        norm.weight.data.copy_(torch.randn(channels))
        norm.bias.data.copy_(torch.randn(channels))
    return norm


class Pairs(nn.Module):
    def __init__(self, conv, bn, forward=lambda s, x: s.bn(s.conv(x)), **more):
        super().__init__()
        self.conv, self.bn, self.given = conv, bn, forward
        for name, module in more.items():
            setattr(self, name, module)

    def forward(self, x):
        return self.given(self, x)


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("affine", [True, False])
def test_folded_equals_float64(name, bias, affine):
    torch.manual_seed(0)
    build, norm, shape = LAYERS[name]
    layer = build(bias=bias)
    bn = settle(norm(layer.weight.shape[0], affine=affine, eps=1e-3)).eval()
    x = torch.randn(3, *shape)
    kept = layer.weight.detach().clone()
    fused = folded_layer(layer, bn)
    with torch.no_grad():
        y = type(layer).forward(layer.double(), x.double())
        per = (1, -1, *[1] * (y.dim() - 2))
        expected = (y - bn.running_mean.double().view(per)) / torch.sqrt(bn.running_var.double() + 1e-3).view(per)
        if affine:
            expected = expected * bn.weight.double().view(per) + bn.bias.double().view(per)
        got = fused(x)
    assert fused is not layer
    assert got.dtype == fused.weight.dtype == torch.float32
    assert torch.equal(layer.weight.float(), kept)
    torch.testing.assert_close(got.double(), expected, rtol=0, atol=float(expected.abs().max()) * 1e-6)


def net(inplace):
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False),
        settle(nn.BatchNorm2d(8)),
        nn.ReLU(inplace),
        nn.Conv2d(8, 8, 3),
        settle(nn.BatchNorm2d(8)),
        nn.ReLU(inplace),
        nn.Flatten(),
        nn.Linear(8 * 16, 5),
        settle(nn.BatchNorm1d(5)),
    ).eval()


@pytest.mark.parametrize("inplace", [False, True])
def test_fuse_measures_the_change_and_leaves_the_original(inplace):
    torch.manual_seed(0)
    model, example = net(inplace), torch.randn(4, 3, 8, 8)
    gm = trace(model, example).module
    state = {k: v.clone() for k, v in gm.state_dict().items()}
    names, given = [n.name for n in gm.graph.nodes], example.clone()
    fused, pairs, change = fuse(gm, example, find_pairs(gm))

    assert [n.name for n in gm.graph.nodes] == names
    assert torch.equal(example, given)
    assert all(torch.equal(v, state[k]) for k, v in gm.state_dict().items())
    assert [(p.conv, p.bn, p.reason) for p in pairs] == [("0", "1", None), ("3", "4", None), ("7", "8", None)]
    assert not any(isinstance(m, nn.BatchNorm2d | nn.BatchNorm1d) for m in fused.modules())
    fused.graph.lint()

    # The true change of each pair, from layers run one by one.
    true = {}
    with torch.no_grad():
        given = before = example.clone()
        for name, module in model.named_children():
            after = module(before)
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                true[name] = (folded_layer(model[int(name) - 1], module)(given) - after).abs().max().item()
            given, before = before.clone(), after
        change_seen = (fused(example.clone()) - model(example.clone())).abs().max().item()
    assert {p.bn: p.max_abs_delta for p in pairs} == pytest.approx(true, abs=1e-12)
    assert max(true.values()) < 1e-4
    assert change == pytest.approx(change_seen, abs=1e-12)


def test_a_wrong_fold_would_show_in_the_delta(monkeypatch):
    torch.manual_seed(0)
    gm = trace(net(True), torch.randn(2, 3, 8, 8)).module

    def wrong(layer, norm):
        fused = folded_layer(layer, norm)
        fused.bias.data += 0.25
        return fused

    monkeypatch.setattr("engine.lowering.graph.fuse.folded_layer", wrong)
    _, pairs, change = fuse(gm, torch.randn(2, 3, 8, 8), find_pairs(gm))
    assert all(pair.max_abs_delta == pytest.approx(0.25, abs=1e-4) for pair in pairs)
    assert change > 0.2


def test_a_chosen_part_is_folded():
    gm = trace(net(False), torch.randn(2, 3, 8, 8)).module
    pairs = find_pairs(gm)
    fused, measured, _ = fuse(gm, torch.randn(2, 3, 8, 8), pairs[:1])
    assert [p.bn for p in measured] == ["1"]
    assert sum(isinstance(m, nn.BatchNorm2d) for m in fused.modules()) == 1


def test_arguments_by_keyword():
    torch.manual_seed(0)
    model = Pairs(nn.Conv2d(3, 4, 1), settle(nn.BatchNorm2d(4)), lambda s, x: s.bn(input=s.conv(input=x))).eval()
    gm = trace(model, torch.randn(2, 3, 4, 4)).module
    fused, (pair,), change = fuse(gm, torch.randn(2, 3, 4, 4), find_pairs(gm))
    assert pair.reason is None
    assert change < 1e-5
    assert "bn" not in dict(fused.named_modules())


def hooked():
    conv = nn.Conv2d(3, 4, 1)
    conv.register_forward_pre_hook(lambda m, args: None)
    return conv


REFUSED = {
    "second user": (
        Pairs(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), lambda s, x: (lambda y: s.bn(y) + y)(s.conv(x))),
        (3, 4, 4),
        "conv is also read by add",
    ),
    "no statistics": (Pairs(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, track_running_stats=False)), (3, 4, 4), "bn keeps no running statistics"),
    "convolution called twice": (
        Pairs(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), lambda s, x: s.bn(s.conv(s.conv(x)))),
        (3, 4, 4),
        "conv is called 2 times",
    ),
    "normalization called twice": (
        Pairs(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), lambda s, x: s.bn(s.bn(s.conv(x)))),
        (3, 4, 4),
        "bn is called 2 times",
    ),
    "tokens": (Pairs(nn.Linear(5, 4), nn.BatchNorm1d(6)), (6, 5), "the linear layer's features are not the normalized dimension"),
    "hooks": (Pairs(hooked(), nn.BatchNorm2d(4)), (3, 4, 4), "conv has forward hooks"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals(name):
    model, shape, reason = REFUSED[name]
    gm = trace(model.eval(), torch.randn(2, *shape)).module
    (pair,) = find_pairs(gm)
    assert pair.reason is not None
    assert pair.reason.startswith(reason)
    fused, (kept,), change = fuse(gm, torch.randn(2, *shape), [pair])
    assert kept == pair
    assert change == 0
    assert any(isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d) for m in fused.modules())


@pytest.mark.parametrize("part", ["conv", "bn"])
def test_training_mode_is_refused(part):
    gm = trace(Pairs(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).eval(), torch.randn(2, 3, 4, 4)).module
    gm.get_submodule(part).train()
    (pair,) = find_pairs(gm)
    assert pair.reason == "in training mode: the statistics still move"


@pytest.mark.parametrize(
    ("bn", "reason"), [(nn.BatchNorm3d(4), "BatchNorm3d after Conv2d"), (nn.BatchNorm2d(5), "4 channels against 5 statistics")]
)
def test_mismatch_is_refused(bn, reason):
    """Such a model does not run; its graph can still be written."""
    graph = torch.fx.Graph()
    graph.output(graph.call_module("bn", (graph.call_module("conv", (graph.placeholder("x"),)),)))
    gm = torch.fx.GraphModule({"conv": nn.Conv2d(3, 4, 1), "bn": bn}, graph).eval()
    assert [pair.reason for pair in find_pairs(gm)] == [reason]


def test_a_normalization_alone_is_no_pair():
    gm = trace(Pairs(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), lambda s, x: s.bn(s.conv(x).relu())).eval(), torch.randn(2, 3, 4, 4)).module
    assert find_pairs(gm) == ()
