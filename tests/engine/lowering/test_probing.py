"""The second-order estimate against the exact Hessian of small networks, in double precision."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.lowering.probing import Probe, Site
from engine.lowering.sensitivity import probed_loss
from engine.planning.sensitivity import Candidate
from engine.recipe.spec import ActivationSpec, WeightSpec
from engine.tasks.base import Batch, Task
from engine.tasks.own import OwnTask

ITEMS, SEEDS = 6, 200
W4, A4 = Candidate(WeightSpec(4)), Candidate(activations=ActivationSpec(4))


class Net(nn.Module):
    """Convolutions with and without groups, an activation in place, and a linear layer that is called for each place."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 4, 3, stride=2, padding=1)
        self.depthwise = nn.Conv2d(4, 8, (3, 1), groups=4, dilation=(2, 1), padding=(2, 0))
        self.places = nn.Linear(8, 5)
        self.last = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first(x), inplace=True)
        x = self.depthwise(x).flatten(2).transpose(1, 2)
        return self.last(torch.tanh(self.places(x)).mean(1))


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    return Net().double().eval().requires_grad_(False)


def task(distribution: bool, loss: Any = None) -> Task:
    made = OwnTask.of([(torch.zeros(1), torch.zeros(1))], metric=lambda outputs, targets: 0.0, loss=loss)
    made.distribution = distribution  # type: ignore[misc]
    return made


def estimated(net: nn.Module, sites: list[Site], x: Tensor, what: Task, targets: Any = None) -> dict[str, tuple[float, float]]:
    """The mean estimate over many draws of signs: of the weights and of the activations of each layer."""
    probe, power = Probe(sites, "cpu"), 0.0
    with torch.no_grad(), probe.looking("ranges", len(x)):
        net(x)
    for seed in range(SEEDS):
        with torch.enable_grad(), probe.looking("gradients", len(x)):
            batch = Batch((x,), targets=targets, count=len(x))
            basis, scalar, some = probed_loss(what, net(x), batch, len(x), torch.Generator().manual_seed(seed))
            scalar.backward()
        power += some
        probe.settle()
    probe.close()
    factor = 1.0 if basis == "mse" else 0.5
    return {
        path: tuple(factor * float(part.sum()) / power for part in (sums.weights, sums.activations)) for path, sums in probe.squares.items()
    }  # type: ignore[return-value]


def exact(loss: Callable[[Tensor], Tensor], at: Tensor, change: Tensor) -> float:
    """½ dᵀ H d with the Hessian of ``loss``."""
    flat, d = at.flatten(), change.flatten()
    hessian = torch.autograd.functional.hessian(lambda v: loss(v.reshape(at.shape)), flat)
    return float(0.5 * d @ hessian @ d)


def errors(sites: list[str], net: nn.Module) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    shapes = {name: net.get_submodule(name).weight.shape for name in sites}  # type: ignore[union-attr, misc]
    return {n: 0.05 * torch.randn(s, generator=generator, dtype=torch.float64).flatten(1) for n, s in shapes.items()}


def divergence(net: nn.Module, x: Tensor, name: str) -> Callable[[Tensor], Tensor]:
    before = net(x).log_softmax(-1)

    def loss(weight: Tensor) -> Tensor:
        after = torch.func.functional_call(net, {f"{name}.weight": weight}, (x,)).log_softmax(-1)
        return (before.exp() * (before - after)).sum(-1).mean()

    return loss


LAYERS = ["first", "depthwise", "places", "last"]


def test_the_divergence_by_rounded_weights_is_that_of_the_exact_hessian(net: Net) -> None:
    x = torch.randn(ITEMS, 2, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    changes = errors(LAYERS, net)
    sites = [Site(name, net.get_submodule(name), (W4,), (), lambda _, name=name: changes[name]) for name in LAYERS]
    found = estimated(net, sites, x, task(distribution=True))
    for name in LAYERS:
        weight = net.get_submodule(name).weight
        wanted = exact(divergence(net, x, name), weight, changes[name].reshape(weight.shape))  # type: ignore[arg-type, union-attr]
        assert found[name][0] == pytest.approx(wanted, rel=0.15)


def test_the_divergence_by_rounded_activations_is_that_of_the_exact_hessian(net: Net) -> None:
    x = torch.randn(ITEMS, 2, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    site = Site("last", net.last, (), (A4,), lambda _: torch.zeros(0))
    found = estimated(net, [site], x, task(distribution=True))
    read = torch.tanh(net.places(net.depthwise(F.relu(net.first(x))).flatten(2).transpose(1, 2))).mean(1)
    low, high = min(float(read.min()), 0.0), max(float(read.max()), 0.0)
    step = (high - low) / 15
    zero = round(-low / step)
    rounded = ((read / step).round() + zero).clamp(0, 15).sub(zero) * step
    before = net(x).log_softmax(-1)

    def loss(value: Tensor) -> Tensor:
        return (before.exp() * (before - net.last(value).log_softmax(-1))).sum(-1).mean()

    assert found["last"][1] == pytest.approx(exact(loss, read, rounded - read), rel=0.15)


def test_the_squared_error_of_other_outputs_is_exact_where_they_are_linear_in_the_weights(net: Net) -> None:
    x = torch.randn(ITEMS, 2, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    change = errors(["last"], net)["last"]
    found = estimated(net, [Site("last", net.last, (W4,), (), lambda _: change)], x, task(distribution=False))
    before = net(x)
    after = torch.func.functional_call(net, {"last.weight": net.last.weight + change}, (x,))
    wanted = float((after - before).square().sum() / before.square().sum())
    assert found["last"][0] == pytest.approx(wanted, rel=0.15)


def test_of_a_loss_it_is_the_empirical_fisher_information(net: Net) -> None:
    x = torch.randn(ITEMS, 2, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    targets = torch.randn(ITEMS, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    change = errors(["places"], net)["places"]
    site = Site("places", net.places, (W4,), (), lambda _: change)
    found = estimated(net, [site], x, task(False, lambda outputs, wanted: F.mse_loss(outputs, wanted)), targets)
    squares = 0.0
    for one, target in zip(x, targets, strict=True):
        weight = net.places.weight.detach().clone().requires_grad_()
        loss = F.mse_loss(torch.func.functional_call(net, {"places.weight": weight}, (one[None],)), target[None])
        (gradient,) = torch.autograd.grad(loss, weight)
        squares += float((gradient * change).sum()) ** 2
    assert found["places"][0] == pytest.approx(0.5 * squares / ITEMS, rel=1e-6)


def test_layers_that_share_a_matrix_are_changed_together() -> None:
    torch.manual_seed(0)

    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.head = nn.Embedding(6, 4), nn.Linear(4, 6, bias=False)
            self.head.weight = self.embedding.weight

        def forward(self, ids: Tensor) -> Tensor:
            return self.head(torch.tanh(self.embedding(ids)).cumsum(1))  # type: ignore[no-any-return]

    model = Tied().double().eval().requires_grad_(False)
    ids = torch.randint(0, 6, (ITEMS, 5), generator=torch.Generator().manual_seed(1))
    change = 0.05 * torch.randn(6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    sites = [
        Site("embedding", model.embedding, (W4,), (), lambda _: change, "embedding"),
        Site("head", model.head, (), (), lambda _: change, "embedding"),
    ]
    found = estimated(model, sites, ids, task(distribution=True))
    before = model(ids).log_softmax(-1)

    def loss(weight: Tensor) -> Tensor:
        state = {"embedding.weight": weight, "head.weight": weight}
        after = torch.func.functional_call(model, state, (ids,), tie_weights=False).log_softmax(-1)
        return (before.exp() * (before - after)).sum(-1).mean()

    assert found["embedding"][0] == pytest.approx(exact(loss, model.embedding.weight, change), rel=0.15)


def test_a_probe_leaves_the_model_as_it_was(net: Net) -> None:
    probe = Probe([Site("last", net.last, (), (A4,), lambda _: torch.zeros(0))], "cpu")
    probe.close()
    assert not net.last._forward_hooks and not net.last._forward_pre_hooks
