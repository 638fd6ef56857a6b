"""Two plans of a small net: the steps by which they differ, really run."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from engine.events.cancellation import StopToken
from engine.kernels.simulate import Simulate
from engine.kernels.stopwatch import Race, Run, Stopwatch
from engine.lowering.graph.layout import arrange
from engine.lowering.graph.normalize import functional_to_modules
from engine.lowering.graph.profile import profile
from engine.lowering.graph.program import Step
from engine.lowering.graph.runtime import QuantizedModel
from engine.lowering.graph.trace import trace
from engine.lowering.graph.trial import Bench, linked
from engine.planning.layer_speed import stored
from engine.recipe.presets import PRESETS
from engine.recipe.spec import LayerSpec

W8A8 = PRESETS["w8a8"]


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 1)
        self.d, self.e = nn.Linear(8 * 16, 32), nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.a(x))
        x = torch.relu(self.c(torch.relu(self.b(x))) + x)
        x = torch.relu(self.d(F.max_pool2d(x, 2).flatten(1)))
        return self.e(x)  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def net() -> fx.GraphModule:
    torch.manual_seed(0)
    gm = trace(Net().eval(), torch.randn(4, 3, 8, 8)).module
    functional_to_modules(gm)
    return gm


class Watch(Stopwatch):
    def __init__(self) -> None:
        super().__init__(StopToken(), 10, None, self._keep)
        self.keys: list[str] = []
        self.ran = 0

    def race(self, key: str, make: Any) -> Race | None:
        self.keys.append(key)
        return super().race(key, make)

    def _keep(self, *runs: Run) -> Race:
        for run in runs:
            run()
            self.ran += 1
        return 1.0, 2.0


def specs(*in_fp32: str) -> dict[str, LayerSpec]:
    return {path: stored(W8A8) if path in in_fp32 else W8A8 for path in "abcde"}


def bench(net: fx.GraphModule, watch: Watch) -> Bench:
    return Bench(net, [Simulate()], profile(net, torch.randn(1, 3, 8, 8)).sizes, watch)


def differing(net: fx.GraphModule, monkeypatch: pytest.MonkeyPatch, *in_fp32: str) -> list[list[tuple[str, str]]]:
    """The steps of each side, by operation and output."""
    sides: list[list[tuple[str, str]]] = []
    original = QuantizedModel.functions

    def functions(model: QuantizedModel) -> Any:
        found: list[tuple[Step, Any]] = original(model)
        sides.append([(step.op, step.output) for step, _ in found])
        return found

    monkeypatch.setattr(QuantizedModel, "functions", functions)
    watch = Watch()
    assert bench(net, watch).race(specs(), specs(*in_fp32), 3) == (1.0, 2.0) and watch.ran == 2
    return sides


def test_the_last_layer_costs_no_conversion(net: fx.GraphModule, monkeypatch: pytest.MonkeyPatch) -> None:
    before, after = differing(net, monkeypatch, "e")
    assert before == [("layer", "relu_3:q"), ("layer", "e")]
    assert after == [("layer", "relu_3"), ("module", "e")]


def test_a_layer_in_the_middle_is_turned_to_float_and_back(net: fx.GraphModule, monkeypatch: pytest.MonkeyPatch) -> None:
    before, after = differing(net, monkeypatch, "b")
    assert before == [("layer", "relu_1:q")]
    assert after == [("dequantize", "relu:f"), ("module", "b"), ("call", "relu_1"), ("quantize", "relu_1:q")]


def test_a_residual_sum_leaves_its_kernel_with_its_layer(net: fx.GraphModule, monkeypatch: pytest.MonkeyPatch) -> None:
    before, after = differing(net, monkeypatch, "c")
    assert before == [("layer", "relu_1:q"), ("layer", "relu_2:q")]
    assert {("layer", "relu_1"), ("module", "c"), ("sum", "relu_2:q")} <= set(after)


def test_equal_plans_have_nothing_to_run(net: fx.GraphModule) -> None:
    watch = Watch()
    assert bench(net, watch).race(specs(), specs(), 1) == (1.0, 2.0)
    bench(net, watch).race(specs(), specs("e"), 1)
    bench(net, watch).race(specs(), specs("e"), 64)
    assert len(set(watch.keys)) == 3, "another batch is another race"


def test_what_reads_a_value_of_unknown_size_is_not_run(net: fx.GraphModule) -> None:
    watch = Watch()
    blind = Bench(net, [Simulate()], {}, watch)
    assert blind.race(specs(), specs("e"), 1) is None and not watch.keys


def test_layers_that_follow_one_another_are_one_group(net: fx.GraphModule) -> None:
    layout = arrange(net, specs())
    assert linked(net, layout, ["a", "d", "e"]) == [("a",), ("d", "e")]
    assert linked(net, layout, ["a", "b", "e"]) == [("a", "b"), ("e",)]
    assert linked(net, layout, ["a", "c"]) == [("a", "c")], "the sum inside c reads a"
    assert linked(net, layout, ["c", "d"]) == [("c", "d")], "pooling and flattening are between them"
    assert linked(net, layout, []) == []
