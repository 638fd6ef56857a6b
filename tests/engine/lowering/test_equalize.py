"""Channels equalized and biases corrected: exact in fp32, against the paper's formula and means in float64."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path
from typing import Any

import driving
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from engine.events.cancellation import StopToken
from engine.lowering.graph import conversion
from engine.lowering.graph.bias import correct
from engine.lowering.graph.equalize import equalize, factors, find_pairs
from engine.lowering.graph.layout import arrange
from engine.lowering.graph.normalize import functional_to_modules
from engine.lowering.graph.reconstruction import Reconstruction, Start
from engine.lowering.graph.trace import trace
from engine.numerics.qparams import affine
from engine.recipe.recipe import Recipe
from engine.recipe.spec import ActivationSpec, LayerSpec, WeightSpec


class Chain(nn.Module):
    """A depthwise chain, a residual block and a flattened head; channels differ in size a thousandfold."""

    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 12, 3, padding=1), nn.Conv2d(12, 12, 3, padding=1, groups=12), nn.Conv2d(12, 8, 1)
        self.d, self.e, self.f = nn.Conv2d(8, 16, 3, padding=1, groups=2), nn.Conv2d(16, 8, 1), nn.Linear(8 * 16, 5)
        self.act = activation

    def forward(self, x: Tensor) -> Tensor:
        y = self.c(self.act(self.b(self.act(self.a(x)))))
        y = F.relu(self.e(self.act(self.d(y))) + y)
        return self.f(torch.flatten(F.max_pool2d(y, 2), 1))


def traced(model: nn.Module, example: Tensor) -> fx.GraphModule:
    gm = trace(model.eval().requires_grad_(False), example).module
    functional_to_modules(gm)
    return gm


def uneven(activation: nn.Module, seed: int = 0) -> Chain:
    torch.manual_seed(seed)
    model = Chain(activation)
    for layer in (model.a, model.b, model.d):
        layer.weight.data *= torch.logspace(-1.5, 1.5, len(layer.weight))[torch.randperm(len(layer.weight))].reshape(-1, 1, 1, 1)
    return model


def drained(steps: Generator[Any, Any, Any]) -> Any:
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value


def spans_of(gm: fx.GraphModule, x: Tensor, names: list[str]) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}

    class Seen(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            value = super().run_node(n)
            if n.name in names:
                found[n.name] = value.abs().transpose(0, 1).flatten(1).amax(1)
            return value

    Seen(gm).run(x)
    return found


@pytest.mark.parametrize("activation", [nn.ReLU(), nn.PReLU(), nn.LeakyReLU(0.1)], ids=str)
@pytest.mark.parametrize("per_tensor", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_an_equalized_network_computes_in_fp32_what_it_did(activation: nn.Module, per_tensor: bool, seed: int) -> None:
    x = torch.randn(4, 3, 8, 8)
    gm = traced(uneven(activation, seed), x)
    pairs = [pair for pair in find_pairs(gm) if pair.reason is None]
    assert [(pair.before, pair.paths) for pair in pairs] == [("a", ("b",)), ("b", ("c",)), ("d", ("e",))]
    by = factors(gm, pairs, spans_of(gm, x, [pair.before for pair in pairs]), ["a", "b", "d"] if per_tensor else [])
    assert max(float(factor.max() / factor.min()) for factor in by.values()) > 10
    new = equalize(gm, pairs, by)
    wanted, got = gm(x), new(x)
    assert float((wanted - got).abs().max() / wanted.abs().max()) < 1e-5
    assert torch.equal(gm(x), wanted)


def test_the_factor_of_one_pair_is_the_papers() -> None:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Conv2d(3, 6, 1), nn.ReLU(), nn.Conv2d(6, 4, 1))
    model[0].weight.data *= torch.logspace(-1, 1, 6).reshape(-1, 1, 1, 1)
    gm = traced(model, torch.randn(2, 3, 4, 4))
    pair, last = find_pairs(gm)
    assert last.reason == "output reads it too"
    name = pair.before
    path = str(next(n for n in gm.graph.nodes if n.name == name).target)
    by = factors(gm, [pair], {name: torch.ones(6)}, [path])[name]
    first, second = (gm.get_submodule(p).weight.detach().double() for p in (path, pair.paths[0]))
    r1, r2 = first.flatten(1).abs().amax(1), second.abs().amax((0, 2, 3))
    wanted = (r1 / r2).sqrt()
    torch.testing.assert_close(by, wanted / wanted.log().mean().exp())
    after = equalize(gm, [pair], {name: by})
    ranges = [after.get_submodule(path).weight.flatten(1).abs().amax(1), after.get_submodule(pair.paths[0]).weight.abs().amax((0, 2, 3))]
    # Both layers have the same range in each channel, but for one factor that is the same for all.
    torch.testing.assert_close(ranges[0] / ranges[1], (ranges[0] / ranges[1])[:1].expand(6), rtol=1e-4, atol=0)


def test_a_sum_stops_a_factor_and_is_named() -> None:
    gm = traced(uneven(nn.ReLU6()), torch.randn(2, 3, 8, 8))
    reasons = {pair.before: pair.reason for pair in find_pairs(gm)}
    assert reasons["a"] is reasons["b"] is None and "reads it too" in str(reasons["e"])


@pytest.mark.parametrize("seed", range(3))
def test_through_relu6_go_the_channels_that_stay_below_6(seed: int) -> None:
    x = torch.randn(4, 3, 8, 8)
    gm = traced(uneven(nn.ReLU6(), seed), x)
    pairs = [pair for pair in find_pairs(gm) if pair.reason is None]
    spans = spans_of(gm, x, [pair.before for pair in pairs])
    by = factors(gm, pairs, spans)
    for pair in pairs:
        reach = spans[pair.before] * 1.25 / 6
        assert pair.clipped and bool((reach > 1).any()) and bool((reach < 1).any())
        assert torch.equal(by[pair.before][reach >= 1], torch.ones(int((reach >= 1).sum()), dtype=torch.float64))
        assert bool((by[pair.before][reach < 1] * (1 + 1e-6) >= reach[reach < 1]).all())
    assert max(float(factor.max() / factor.min()) for factor in by.values()) > 5
    wanted, got = gm(x), equalize(gm, pairs, by)(x)
    assert float((wanted - got).abs().max() / wanted.abs().max()) < 1e-5


def test_a_layer_that_is_called_twice_is_left_alone() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(F.relu(self.a(F.relu(self.a(x)))))

    gm = traced(Twice(), torch.randn(2, 3, 4, 4))
    assert [str(pair.reason) for pair in find_pairs(gm)] == ["a is called 2 times"] * 2 + ["output reads it too"]


def a_start(bits: int) -> tuple[Start, list[tuple[Tensor, ...]]]:
    """A rounding whose mean errors are large: weights are positive and rounded down."""
    torch.manual_seed(3)
    model = uneven(nn.ReLU())
    for layer in (model.a, model.c, model.e):
        layer.weight.data.abs_()
    chunks = [(torch.rand(8, 3, 8, 8),) for _ in range(8)]
    gm = traced(model, chunks[0][0])
    specs = {name: LayerSpec(WeightSpec(bits), ActivationSpec(8)) for name in "abcdef"}
    layout = arrange(gm, specs)
    grids = {c.name: affine(-40.0, 40.0, 8) for c in layout.classes}
    weights = conversion.round_weights(gm, layout, specs)
    down = {name: type(w)(torch.where(w.codes > 0, w.codes - 1, w.codes), w.scale, None, w.format) for name, w in weights.items()}
    return Start(gm, gm, layout, specs, grids, down), chunks


def test_a_corrected_bias_moves_by_the_mean_error_in_float64() -> None:
    start, chunks = a_start(4)
    found = drained(correct(start, chunks, StopToken()))
    assert found.after > found.before and "a" in found.changes
    work = Reconstruction(start, chunks, StopToken())
    layer = start.gm.get_submodule("a")
    (placeholder,) = [n for n in start.gm.graph.nodes if n.op == "placeholder"]
    seen = [chunk for chunk in range(8) if chunk % 8 != 7]
    exact = torch.cat([F.conv2d(chunks[c][0].double(), layer.weight.double(), layer.bias.double(), padding=1) for c in seen])
    held = start.weights["a"].dequantize().double()
    rounded = torch.cat([F.conv2d(work.rounded.values[placeholder][c].double(), held, layer.bias.double(), padding=1) for c in seen])
    torch.testing.assert_close(found.changes["a"].shift.double(), (exact - rounded).mean((0, 2, 3)), rtol=1e-4, atol=1e-6)


def test_a_bias_that_gains_nothing_on_the_items_held_back_stays() -> None:
    start, chunks = a_start(8)
    # The items that judge are unlike those that were seen.
    chunks[7] = (-chunks[7][0] * 3,)
    found = drained(correct(start, chunks, StopToken()))
    exact = Reconstruction(start, chunks, StopToken())
    assert set(found.found.weights) == set(found.changes) and len(found.changes) < 6
    assert all(torch.equal(found.found.weights[name].codes, exact.layers[name].weight.codes) for name in found.changes)


def test_re_estimation_gives_what_statistics_gathered_anew_give() -> None:
    """Of one convolution with a normalization folded in: as if that had been a BatchNorm2d with the statistics of the rounded layer."""
    start, chunks = a_start(3)
    found = drained(correct(start, chunks, StopToken(), ranges=True))
    work = Reconstruction(start, chunks, StopToken())
    before, after = work.layers["a"], found.changes["a"].of(work.layers["a"])
    read = work.nodes["a"].all_input_nodes[0]
    inputs = torch.cat([work.rounded.values[read][chunk] for chunk in work.seen])
    exact = torch.cat([start.gm.get_submodule("a")(chunks[chunk][0]) for chunk in work.seen])
    gamma, beta = exact.double().transpose(0, 1).flatten(1).std(1, correction=0), exact.double().mean((0, 2, 3))
    wanted = F.batch_norm(before(inputs).double(), None, None, gamma, beta, training=True, eps=1e-12)
    torch.testing.assert_close(after(inputs).double(), wanted, rtol=1e-4, atol=1e-4)
    assert torch.equal(after.weight.codes, before.weight.codes) and found.after > found.before


def test_a_run_tells_of_its_repairs_what_each_brought_and_takes_none_that_makes_it_worse(tmp_path: Path) -> None:
    rules = [{"match": "*", "weights": {"bits": 4}, "activations": {"bits": 8}}]
    recipe = Recipe.make(
        model="simplecnn", preset="w8a8", rules=rules, data={"calibration": 128, "limit": 64}, qat={"mode": "never"}, export=(),
        equalize=True, bias_correction=True, bn_reestimation=True,
    )  # fmt: skip
    outcome = driving.drive(recipe, tmp_path / "run")
    assert outcome.error is None and outcome.report is not None, outcome.error
    repairs = {entry["step"]: entry for entry in outcome.report.data["repairs"]}
    assert set(repairs) == {"equalize", "bias_correction", "bn_reestimation"}
    for entry in repairs.values():
        assert entry["taken"] == (entry["sqnr_db_after"] > entry["sqnr_db_before"])
    assert repairs["equalize"]["delta"] < 1e-4


def test_a_recipe_without_repairs_reads_and_is_told_apart_as_before() -> None:
    plain, asked = Recipe.make(model="simplecnn"), Recipe.make(model="simplecnn", equalize=True)
    assert "equalize" not in plain.to_yaml() and "bias_correction" not in plain.to_yaml()
    assert "equalize: true" in asked.to_yaml() and plain.fingerprint() != asked.fingerprint()
