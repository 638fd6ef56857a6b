"""A plan in fixed memory computes what its steps compute, or is not used."""

import nets
import pytest
import torch

from engine.kernels.dnnl.layers import Direct
from engine.kernels.dnnl.library import path
from engine.kernels.simulate import Simulate
from engine.lowering.graph import fixed
from engine.lowering.graph.fixed import mirrored
from engine.lowering.graph.runtime import QuantizedModel

pytestmark = pytest.mark.skipif(path() is None, reason="onednn-cpu-gomp is not installed")
X = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def native(make=nets.Residual):
    given = nets.quantized(make, activations=7)
    return QuantizedModel(given.model.program, [Direct(), Simulate()], given.whole)


@pytest.mark.parametrize("make", nets.NETS, ids=lambda make: make.__name__)
def test_plans_of_networks_agree_with_their_steps(make):
    model = native(make)
    for x in (X, X[:1], X.contiguous(memory_format=torch.channels_last), X.transpose(2, 3), X[:1].expand(4, -1, -1, -1)):
        assert torch.equal(model(x), model.values(x)[model.program.result])
        assert torch.equal(model(x), model.values(x)[model.program.result])
    assert model.unplanned == []
    # What a whole attention module gives is a tuple, which has no fixed place.
    assert make is nets.Attention or all(plan is not None for _, plan in list(model._plans.items())[:3])


def test_a_plan_that_computes_something_else_is_said_and_not_used(monkeypatch):
    wanted = native()(X)
    monkeypatch.setattr(fixed.Fixed, "__call__", lambda self, x: self.result + 1)
    model = native()
    assert torch.equal(model(X), wanted)
    assert torch.equal(model(X), wanted)
    assert model.unplanned == ["the plan for images of shape (3, 3, 16, 16) does not compute what its steps compute: they run step by step"]


def test_a_value_that_a_plan_does_not_compute_again_is_seen(monkeypatch):
    """On the images that a plan was made with, a stale value would be right."""
    wanted = native()(X)
    monkeypatch.setattr(fixed.Fixed, "__call__", lambda self, x: self.result.clone())
    model = native()
    assert torch.equal(model(X), wanted)
    assert len(model.unplanned) == 1


def test_mirrored_images_are_others_in_the_same_layout():
    for x in (X, X.contiguous(memory_format=torch.channels_last), X.transpose(2, 3)):
        assert mirrored(x).stride() == x.stride()
        assert not torch.equal(mirrored(x), x)
        assert torch.equal(mirrored(x), x.flip(0, 1, 2, 3))
    assert mirrored(X[:1].expand(4, -1, -1, -1)).stride()[0] == 0
