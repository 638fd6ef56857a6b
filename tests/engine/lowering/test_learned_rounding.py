"""Rounding that is learned: against all roundings of a tiny layer, the integer program, and the run that was not stopped."""

from __future__ import annotations

import itertools
from collections.abc import Generator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from engine.algorithms.gptq import gptq
from engine.algorithms.gram import output_error
from engine.algorithms.soft_rounding import SoftRounding, adaround, neighbour
from engine.data.images.base import Data, MemorySplit
from engine.errors import Cancelled, EngineError
from engine.events.cancellation import StopToken
from engine.kernels.simulate import Simulate
from engine.lowering.graph import block_rounding, conversion, layer_rounding, reconstructing
from engine.lowering.graph.calibration import calibrate
from engine.lowering.graph.fuse import find_pairs, fuse
from engine.lowering.graph.layout import Layout, arrange
from engine.lowering.graph.normalize import functional_to_modules
from engine.lowering.graph.reconstruct import items_within
from engine.lowering.graph.reconstruction import Reconstruction, Start
from engine.lowering.graph.segments import segments
from engine.lowering.graph.streams import Nodes, Stream
from engine.lowering.graph.trace import trace
from engine.numerics.formats import FORMATS
from engine.numerics.scheme import int_scheme
from engine.numerics.weights import minmax
from engine.recipe.spec import ActivationSpec, LayerSpec, WeightSpec
from engine.tasks.classification import Classification


class Net(nn.Module):
    """A stem, a residual block with a depthwise convolution in it, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.wide, self.deep, self.narrow = nn.Conv2d(8, 16, 1), nn.Conv2d(16, 16, 3, padding=1, groups=16), nn.Conv2d(16, 8, 1)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        a = torch.relu(self.norm(self.stem(x)))
        b = F.relu6(self.deep(F.relu(self.wide(a))))
        c = torch.relu(self.narrow(b) + a)
        return self.head(c.mean((2, 3)))


def a_split(count: int, seed: int) -> MemorySplit:
    g = torch.Generator().manual_seed(seed)
    return MemorySplit(torch.randint(0, 256, (count, 3, 8, 8), generator=g).to(torch.uint8), torch.zeros(count, dtype=torch.long))


DATA = Data("noise", tuple("abcde"), (3, 8, 8), (0.5,) * 3, (0.3,) * 3, a_split(64, 1), a_split(32, 2), a_split(8, 3), False, 1)  # type: ignore[arg-type]
TASK = Classification(DATA)
ITEMS = 64


def drained(steps: Generator[Any, Any, Any], until: int = 10**9) -> Any:
    for _ in range(until):
        try:
            next(steps)
        except StopIteration as end:
            return end.value
    return None


class Case:
    """The net, calibrated and rounded by GPTQ, where its layers ask for ``method``."""

    def __init__(self, method: str, bits: int = 3, activation_bits: int = 8) -> None:
        torch.manual_seed(4)
        model = Net().eval().requires_grad_(False)
        model.norm.running_mean.normal_(0, 0.3)
        model.norm.running_var.uniform_(0.5, 2)
        example = next(TASK.batches("train", batch=4, limit=4)).args[0]
        traced = trace(model, example).module
        functional_to_modules(traced)
        self.gm: fx.GraphModule = fuse(traced, example, find_pairs(traced))[0]
        paths = [str(n.target) for n in self.gm.graph.nodes if n.op == "call_module"]
        spec = LayerSpec(WeightSpec(bits, method=method), ActivationSpec(activation_bits))
        self.specs = {path: spec for path in paths if isinstance(self.gm.get_submodule(path), nn.Conv2d | nn.Linear)}
        self.layout: Layout = arrange(self.gm, self.specs)
        inputs = conversion.watched(self.gm, self.layout, self.specs, ITEMS)
        self.grids = drained(calibrate(self.gm, self.layout, TASK, ITEMS, 32, "cpu", StopToken(), readers=inputs))
        self.rounded: conversion.RoundedWeights = drained(conversion.round_layers(self.gm, self.layout, self.specs, inputs, StopToken()))

    @property
    def start(self) -> Start:
        return Start(self.gm, self.rounded.graph, self.layout, self.specs, self.grids, self.rounded.weights)

    def learn(self, folder: Path | None = None, stop: StopToken | None = None, seed: int = 0) -> Generator[Any, Any, Any]:
        return reconstructing.reconstructed(
            self.gm, self.layout, self.specs, self.grids, self.rounded, TASK, ITEMS, {}, seed, stop or StopToken(), folder
        )

    def chunks(self) -> list[tuple[Tensor, ...]]:
        return [batch.args for batch in TASK.calibration_batches(batch=8, limit=ITEMS)]


@pytest.fixture(autouse=True)
def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layer_rounding, "STEPS", 120)
    monkeypatch.setattr(layer_rounding, "RATE", 5e-2)
    monkeypatch.setattr(block_rounding, "STEPS", 40)


def test_learned_rounding_is_near_the_best_of_all_roundings_of_a_tiny_layer() -> None:
    g = torch.Generator().manual_seed(0)
    weight = torch.randn(6, 8, generator=g)
    x = torch.randn(200, 8, generator=g) @ torch.randn(8, 8, generator=g)
    second = x.T @ x / len(x)
    grid = minmax(weight, int_scheme(3, 0, True))
    start, _ = gptq(weight, grid, second)
    found, _ = adaround(weight, grid, second, steps=600)
    soft = SoftRounding(weight, start)
    choices = torch.tensor(list(itertools.product((0.0, 1.0), repeat=8)))
    every = (soft.low[:, None] + choices * soft.gap[:, None]) * soft.step[:, None]
    change = (every - weight[:, None]).double()
    best = ((change @ second.double()) * change).sum(2).amin(1)
    mine, before = (output_error(q.dequantize() - weight, second).double() for q in (found, start))
    assert (mine <= before).all() and float(mine.sum()) < float(before.sum())
    assert float(mine.sum()) <= 1.1 * float(best.sum())


def test_the_neighbours_of_a_float_format_are_its_own_levels() -> None:
    form = FORMATS["fp4_e2m1"] if "fp4_e2m1" in FORMATS else FORMATS["mxfp4"]
    levels = sorted(set(form.levels))
    values = torch.tensor(levels)
    assert neighbour(values, torch.ones(len(levels), dtype=torch.bool), form).tolist() == [*levels[1:], levels[-1]]
    assert neighbour(values, torch.zeros(len(levels), dtype=torch.bool), form).tolist() == [levels[0], *levels[:-1]]


@pytest.mark.parametrize("blocks", [False, True])
def test_segments_hold_every_node_once_and_give_what_the_graph_gives(blocks: bool) -> None:
    case = Case("adaround")
    found = segments(case.gm, case.layout, case.rounded.weights, list(case.rounded.weights) if blocks else [])
    together = [set(segment.layers) for segment in found if segment.layers]
    residual = {"wide", "deep", "narrow"}
    assert together == ([{"stem"}, residual, {"head"}] if blocks else [{"stem"}, {"wide"}, {"deep"}, {"narrow"}, {"head"}])
    nodes = [node for segment in found for node in segment.nodes]
    assert sorted(nodes, key=str) == sorted((n for n in case.gm.graph.nodes if n.op not in ("placeholder", "output")), key=str)
    stream = Stream(case.gm, case.chunks(), Nodes(case.gm))
    for segment in found:
        stream.run(segment.nodes, set(case.gm.graph.nodes))
    output = next(node for node in case.gm.graph.nodes if node.op == "output").args[0]
    for (x,), value in zip(case.chunks(), stream.values[output], strict=True):
        torch.testing.assert_close(value, case.gm(x))


def test_the_quantized_values_are_those_of_the_integer_program() -> None:
    case = Case("adaround")
    work = Reconstruction(case.start, case.chunks(), StopToken())
    work.rounded.run([n for n in case.gm.graph.nodes if n.op not in ("placeholder", "output")], set(case.gm.graph.nodes))
    model = drained(conversion.convert(case.rounded.graph, case.layout, case.grids, case.rounded.weights, [Simulate()])).model
    output = next(node for node in case.gm.graph.nodes if node.op == "output").args[0]
    for (x,), value in zip(case.chunks(), work.rounded.values[output], strict=True):
        wanted = model(x)
        # One step of an input of the head: a value in the middle of two integers may go either way.
        assert float((value - wanted).norm() / wanted.norm()) < 0.01


@pytest.mark.parametrize("method", ["adaround", "brecq"])
def test_learned_rounding_brings_the_outputs_nearer_to_fp32_and_says_what_was_taken(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layer_rounding, "STEPS", 400)
    monkeypatch.setattr(layer_rounding, "RATE", 1e-2)
    monkeypatch.setattr(block_rounding, "STEPS", 150)
    case = Case(method, 2)
    rounded, grids = drained(case.learn())
    errors = []
    for held, how in ((case.rounded, case.grids), (rounded, grids)):
        model = drained(conversion.convert(held.graph, case.layout, how, held.weights, [Simulate()])).model
        with torch.no_grad():
            errors.append(sum(float((model(x) - case.gm(x)).square().sum()) for (x,) in case.chunks()))
    assert errors[1] < errors[0]
    assert set(rounded.notes) == set(case.rounded.weights)
    assert all("held back" in note for note in rounded.notes.values())


def test_weights_and_biases_of_the_float_graph_are_those_of_the_integers() -> None:
    case = Case("adaround")
    rounded, _ = drained(case.learn())
    again = conversion.round_weights(
        rounded.graph, case.layout, {path: replace(spec, weights=WeightSpec(3)) for path, spec in case.specs.items()}
    )
    for node, weight in rounded.weights.items():
        step = weight.scale.reshape(-1, *[1] * (weight.codes.dim() - 1))
        held = rounded.graph.get_submodule(node).weight
        assert torch.equal((held / step).round().clamp(-4, 3).to(torch.int8), weight.codes)
    assert set(again) == set(rounded.weights)


@pytest.mark.parametrize("method", ["adaround", "brecq"])
def test_a_stopped_run_goes_on_where_it_was_with_the_same_bits(method: str, tmp_path: Path) -> None:
    case = Case(method)
    whole, whole_grids = drained(case.learn(seed=3))
    stop = StopToken()
    steps = case.learn(tmp_path / "kept", stop, seed=3)
    while not list((tmp_path / "kept").glob("segment-*")) if (tmp_path / "kept").exists() else True:
        next(steps)
    stop.set()
    with pytest.raises(Cancelled):
        drained(steps)
    begun = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "kept").iterdir()}
    resumed, grids = drained(case.learn(tmp_path / "kept", seed=3))
    assert all((tmp_path / "kept" / name).stat().st_mtime_ns == time for name, time in begun.items())
    assert grids == whole_grids
    for node, weight in whole.weights.items():
        assert torch.equal(weight.codes, resumed.weights[node].codes) and torch.equal(weight.scale, resumed.weights[node].scale)
    for name, tensor in whole.graph.state_dict().items():
        assert torch.equal(tensor, resumed.graph.state_dict()[name]), name


def test_what_was_kept_for_another_seed_is_not_taken_and_a_damaged_file_is_named(tmp_path: Path) -> None:
    case = Case("adaround")
    first, _ = drained(case.learn(tmp_path, seed=1))
    other, _ = drained(case.learn(tmp_path, seed=2))
    alone, _ = drained(case.learn(seed=2))
    assert all(torch.equal(other.weights[node].codes, weight.codes) for node, weight in alone.weights.items())
    assert any(not torch.equal(first.weights[node].codes, weight.codes) for node, weight in alone.weights.items())
    damaged = sorted(tmp_path.glob("segment-*"))[0]
    damaged.write_bytes(b"\x00" * 16)
    with pytest.raises(EngineError, match="damaged: delete it"):
        drained(case.learn(tmp_path, seed=2))


def test_what_does_not_better_the_items_held_back_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case("adaround")
    # Weights that are all pushed away from where they should be.
    monkeypatch.setattr(SoftRounding, "rounded", lambda self: self._grid.with_codes((self.low + self.gap).to(torch.int8)))
    rounded, _ = drained(case.learn())
    for node, weight in case.rounded.weights.items():
        assert torch.equal(rounded.weights[node].codes, weight.codes)
        assert "with AdaRound" in rounded.notes[node]


def test_only_as_many_items_are_taken_as_have_room() -> None:
    case = Case("adaround")
    assert items_within(case.gm, {}, 512) == 512
    huge = {node.name: (1, 4096, 4096) for node in case.gm.graph.nodes}
    assert 16 <= items_within(case.gm, huge, 512) < 64


def test_a_layer_that_is_called_twice_keeps_the_rounding_that_both_calls_share(monkeypatch: pytest.MonkeyPatch) -> None:
    class Twice(Net):
        def forward(self, x: Tensor) -> Tensor:
            a = torch.relu(self.norm(self.stem(x)))
            b = torch.relu(self.narrow(torch.relu(self.wide(a))))
            return self.head(torch.relu(self.narrow(torch.relu(self.wide(b)))).mean((2, 3)))

    monkeypatch.setattr(f"{__name__}.Net", Twice)
    case = Case("adaround")
    rounded, _ = drained(case.learn())
    twice = [node for node in case.rounded.weights if node.startswith(("wide", "narrow"))]
    assert len(twice) == 4
    for node in twice:
        assert torch.equal(rounded.weights[node].codes, case.rounded.weights[node].codes)
    bias = rounded.graph.get_submodule("wide").bias
    assert torch.equal(bias, case.rounded.graph.get_submodule("wide").bias)
