"""The noise of layers: against a reference in float64 that is written out here, unit by unit."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from engine.data.images.base import Data, MemorySplit
from engine.errors import Cancelled
from engine.events.cancellation import StopToken
from engine.kernels.simulate import Simulate
from engine.lowering.graph import conversion
from engine.lowering.graph.calibration import calibrate
from engine.lowering.graph.fuse import find_pairs, fuse
from engine.lowering.graph.layer_noise import LayerNoise, layer_sqnr
from engine.lowering.graph.layout import Layout, arrange
from engine.lowering.graph.normalize import functional_to_modules
from engine.lowering.graph.trace import trace
from engine.recipe.spec import ActivationSpec, LayerSpec, WeightSpec
from engine.tasks.classification import Classification


class Net(nn.Module):
    """A normalization, a residual sum inside a convolution, and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.c1, self.b1 = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.c2, self.c3, self.b3 = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.f = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        a = torch.relu(self.b1(self.c1(x)))
        b = torch.relu(self.b3(self.c3(F.hardswish(self.c2(a)))) + a)
        return self.f(b.mean((2, 3)))


def a_split(count: int, seed: int) -> MemorySplit:
    g = torch.Generator().manual_seed(seed)
    return MemorySplit(torch.randint(0, 256, (count, 3, 8, 8), generator=g).to(torch.uint8), torch.zeros(count, dtype=torch.long))


DATA = Data("noise", tuple("abcde"), (3, 8, 8), (0.5,) * 3, (0.3,) * 3, a_split(64, 1), a_split(150, 2), a_split(8, 3), False, 1)  # type: ignore[arg-type]
TASK = Classification(DATA)


def net() -> Net:
    torch.manual_seed(4)
    model = Net().eval().requires_grad_(False)
    for norm in (model.b1, model.b3):
        norm.running_mean.normal_(0, 0.3)
        norm.running_var.uniform_(0.5, 2)
        norm.weight.uniform_(0.5, 1.5)
        norm.bias.normal_(0, 0.3)
    return model


def finish(steps: Any) -> Any:
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value


def quantized(model: nn.Module, bits: int, fold: bool) -> tuple[fx.GraphModule, Layout, conversion.Converted]:
    example = torch.randn(2, 3, 8, 8)
    gm = trace(model, example).module
    functional_to_modules(gm)
    if fold:
        gm, _, _ = fuse(gm, example, find_pairs(gm))
    specs = {path: LayerSpec(WeightSpec(bits), ActivationSpec(7)) for path in ("c1", "c2", "c3", "f")}
    layout = arrange(gm, specs)
    grids = finish(calibrate(gm, layout, TASK, 64, 64, "cpu", StopToken()))
    return gm, layout, finish(conversion.convert(gm, layout, grids, conversion.round_weights(gm, layout, specs), [Simulate()]))


def normalized(y: Tensor, norm: nn.BatchNorm2d) -> Tensor:
    def over(v: Tensor) -> Tensor:
        return v.double().reshape(1, -1, 1, 1)

    return (y - over(norm.running_mean)) / (over(norm.running_var) + norm.eps).sqrt() * over(norm.weight) + over(norm.bias)


def convolved(x: Tensor, layer: nn.Conv2d) -> Tensor:
    bias = None if layer.bias is None else layer.bias.double()
    return F.conv2d(x, layer.weight.double(), bias, padding=1)


def decibels(wanted: Tensor, got: Tensor) -> float:
    return 10 * math.log10(wanted.square().sum().item() / (wanted - got).square().sum().item())


def references(model: Net, layout: Layout, it: conversion.Converted, images: int) -> dict[str, tuple[float, float]]:
    """Both figures for each layer, all images at once, in float64. ``model`` gives the float form of each unit."""
    ((x, _),) = DATA.batches("validation", images, limit=images)
    got = it.model.watch(x.contiguous(memory_format=torch.channels_last))
    class_of = layout.class_of()

    def held(name: str) -> Tensor:
        if f"{name}:q" not in got:
            return got[name].double()
        grid = it.grids[class_of[name].name]
        return (got[f"{name}:q"].double() - grid.zero_point) * grid.scale

    units = {unit.path: unit for unit in layout.units}
    into = {path: held(unit.input) for path, unit in units.items()}
    third = units["c3"].other
    assert third is not None
    alone = {
        "c1": normalized(convolved(into["c1"], model.c1), model.b1).relu(),
        "c2": F.hardswish(convolved(into["c2"], model.c2)),
        "c3": (normalized(convolved(into["c3"], model.c3), model.b3) + held(third)).relu(),
        "f": F.linear(into["f"], model.f.weight.double(), model.f.bias.double()),
    }
    exact = copy.deepcopy(net()).double()
    a = torch.relu(exact.b1(exact.c1(x.double())))
    b = F.hardswish(exact.c2(a))
    c = torch.relu(exact.b3(exact.c3(b)) + a)
    whole = {"c1": a, "c2": b, "c3": c, "f": exact.f(c.mean((2, 3)))}
    return {path: (decibels(whole[path], held(u.output)), decibels(alone[path], held(u.output))) for path, u in units.items()}


@pytest.mark.parametrize("fold", [True, False])
@pytest.mark.parametrize("bits", [8, 4])
def test_noise_is_what_float64_says(bits: int, fold: bool) -> None:
    gm, layout, it = quantized(net(), bits, fold)
    assert {unit.path: (bool(unit.add), unit.activation_kind, bool(unit.bn)) for unit in layout.units} == {
        "c1": (False, "relu", not fold), "c2": (False, "hardswish", False), "c3": (True, "relu", not fold), "f": (False, "none", False),
    }  # fmt: skip
    found = layer_sqnr(gm, gm, layout, it.grids, it.model, TASK, StopToken())
    expected = references(net(), layout, it, 128)
    assert set(found) == {unit.layer for unit in layout.units}
    for unit in layout.units:
        noise = found[unit.layer]
        assert (noise.sqnr_db, noise.own_sqnr_db) == pytest.approx(expected[unit.path], abs=0.01)
        assert type(noise.sqnr_db) is type(noise.own_sqnr_db) is float


def test_only_the_layer_that_is_bad_has_a_bad_figure_of_its_own() -> None:
    """Two bits in the second of four layers: it and the ones after it are noisy, but only it makes noise."""
    model = net()
    gm, layout, it = quantized(model, 8, True)
    worse = copy.deepcopy(it.weights["c2"])
    worse.codes.copy_(worse.codes.div(64, rounding_mode="floor") * 64)
    bad = finish(conversion.convert(gm, layout, it.grids, {**it.weights, "c2": worse}, [Simulate()]))
    before, after = (layer_sqnr(gm, gm, layout, it.grids, m, TASK, StopToken()) for m in (it.model, bad.model))
    assert after["c2"].own_sqnr_db < before["c2"].own_sqnr_db - 15
    for name in ("c3", "f"):
        assert after[name].sqnr_db < before[name].sqnr_db - 10
        assert after[name].own_sqnr_db == pytest.approx(before[name].own_sqnr_db, abs=2)
    assert after["c1"] == before["c1"]


def test_a_trained_layer_is_held_against_its_own_trained_form() -> None:
    """Training moves the weights far: from the model that is no noise of the rounding, but from fp32 it is a difference."""
    trained = net()
    trained.c2.weight.mul_(1.5)
    original, _, _ = quantized(net(), 8, True)
    gm, layout, it = quantized(trained, 8, True)
    found = layer_sqnr(original, gm, layout, it.grids, it.model, TASK, StopToken())
    expected = references(trained, layout, it, 128)
    for unit in layout.units:
        assert (found[unit.layer].sqnr_db, found[unit.layer].own_sqnr_db) == pytest.approx(expected[unit.path], abs=0.01)
    assert found["c2"].sqnr_db < 10 and found["c2"].own_sqnr_db > 30


def test_looking_changes_nothing_and_stops_at_once() -> None:
    gm, layout, it = quantized(net(), 8, True)
    x = torch.randn(4, 3, 8, 8).contiguous(memory_format=torch.channels_last)
    before, state = it.model(x), {name: t.clone() for name, t in gm.state_dict().items()}
    first, second = (layer_sqnr(gm, gm, layout, it.grids, it.model, TASK, StopToken()) for _ in range(2))
    assert first == second and all(isinstance(noise, LayerNoise) for noise in first.values())
    assert torch.equal(it.model(x), before) and all(torch.equal(t, gm.state_dict()[name]) for name, t in state.items())
    stop = StopToken()
    stop.set()
    with pytest.raises(Cancelled):
        layer_sqnr(gm, gm, layout, it.grids, it.model, TASK, stop)
