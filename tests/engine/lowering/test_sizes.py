"""A program serves images of any size, or refuses those that it was not traced on."""

import nets
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from engine.errors import EngineError
from engine.lowering.graph.artifact import load_network, to_bytes
from engine.lowering.graph.sizes import held_sizes
from engine.lowering.graph.trace import trace


class Net(nn.Module):
    def __init__(self, middle):
        super().__init__()
        self.c, self.f, self.middle = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 4), middle

    def forward(self, x):
        return self.f(self.middle(self.c(x).relu()))


def squeezed(a):
    n, c, _, _ = a.size()
    return (a * F.adaptive_avg_pool2d(a, 1).view(n, c).sigmoid().view(n, c, 1, 1)).mean((2, 3))


def added(a):
    rows = torch.linspace(-1, 1, a.size(2)).view(1, 1, -1, 1)
    return (a * rows).mean((2, 3))


def looped(a):
    return sum(a[:, :, i].mean(2) * i for i in range(a.shape[2])) / 32


FREE = {
    "no size": lambda a: a.mean((2, 3)),
    "batch alone": lambda a: a.view(a.size(0), 8, -1).mean(2),
    "channels of a size": squeezed,
    "a leaf's own": nn.AdaptiveAvgPool2d(1),
}
HELD = {
    "pooled over its size": lambda a: F.avg_pool2d(a, (a.size(-2), a.size(-1))).flatten(1),
    "a branch on the size": lambda a: (a.sigmoid() if a.shape[-1] > 200 else a).mean((2, 3)),
    "a branch on what follows from it": lambda a: (a.sigmoid() if a.shape[-1] * a.shape[-2] // 2 >= 40000 else a).mean((2, 3)),
    "a constant of the size": added,
    "a loop over the size": looped,
    "a view of the size": lambda a: a.reshape(a.size(0), 8, a.shape[2] * a.shape[3]).mean(2),
}
X = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", FREE)
def test_a_graph_without_a_size_serves_others(name):
    model = Net(FREE[name]).eval() if name != "a leaf's own" else Net(nn.Sequential(FREE[name], nn.Flatten())).eval()
    gm = trace(model, X).module
    assert held_sizes(gm.graph) is None
    other = torch.randn(3, 3, 36, 44)
    torch.testing.assert_close(gm(other), model(other))


@pytest.mark.parametrize("name", HELD)
def test_a_graph_that_computes_with_a_size_holds_it(name):
    assert held_sizes(trace(Net(HELD[name]).eval(), X).module.graph) == (32, 32)


@pytest.mark.parametrize("name", HELD)
def test_a_program_refuses_images_of_another_size_than_it_holds(name, tmp_path):
    given = nets.quantized(lambda: Net(HELD[name]), images=X.repeat(4, 1, 1, 1))
    assert given.model.program.sizes == (32, 32)
    (tmp_path / "model.safetensors").write_bytes(to_bytes(given.model.program, "model: net\n", "any"))
    loaded = load_network(tmp_path)
    assert loaded.program.sizes == (32, 32)
    for model in (given.model, loaded):
        assert model(X).shape == (2, 4)
        with pytest.raises(EngineError, match="traced on images of 32×32 .* not with 36×44: give images of 32×32"):
            model(torch.randn(2, 3, 36, 44))


def test_a_program_without_a_size_computes_other_images_as_fp32_does():
    torch.manual_seed(0)
    model = Net(squeezed).eval()
    given = nets.quantized(lambda: model, images=X.repeat(4, 1, 1, 1))
    assert given.model.program.sizes is None
    x = torch.randn(2, 3, 36, 44)
    with torch.no_grad():
        error = given.model(x) - model(x)
        assert error.square().sum() < 0.003 * model(x).square().sum()
