"""The predicted size of a model's file against the file itself."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.kernels.probe import Machine
from engine.lowering.graph.artifact import to_bytes
from engine.lowering.graph.conversion import round_weights
from engine.lowering.graph.convert import convert
from engine.lowering.graph.fp32_forms import fp32_size
from engine.lowering.graph.fuse import find_pairs, fuse
from engine.lowering.graph.layers import plan
from engine.lowering.graph.layout import arrange
from engine.lowering.graph.normalize import functional_to_modules
from engine.lowering.graph.observe import Observed
from engine.lowering.graph.trace import trace
from engine.models.simplecnn import SimpleCNN
from engine.planning.legality import legalize
from engine.planning.size import predicted_bytes, stored_bytes
from engine.recipe.capabilities import CONVOLUTION
from engine.recipe.presets import PRESETS
from engine.recipe.recipe import Recipe
from engine.recipe.spec import FP32, ActivationSpec, LayerSpec, Rule, WeightSpec

MACHINE = Machine("AVX2", False, True)
GROUPS = LayerSpec(WeightSpec(4, "per-group", 32), ActivationSpec(8))
MIX = (Rule("*conv1", FP32), Rule("fc*", LayerSpec(WeightSpec(4, "per-group", 16))), Rule("*conv2", GROUPS))


class Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride) if stride > 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))) + self.shortcut(x))


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layers = nn.Sequential(*(Block(a, b, 1 + (a != b)) for a, b in ((16, 16), (16, 32), (32, 32), (32, 64), (64, 64))))
        self.fc = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.layers(F.relu(self.bn1(self.conv1(x)))).mean((2, 3)))


@pytest.mark.parametrize("network", [SimpleCNN, Residual])
@pytest.mark.parametrize("folded", [True, False])
@pytest.mark.parametrize(
    ("preset", "rules"),
    [
        ("w8a8", ()), ("w4a8", ()), ("w8", ()), ("w4", ()), ("default", ()), ("w8a8", MIX), ("w8a8", (Rule("*", GROUPS),)),
        ("w8a8", (Rule("*", FP32),)),
        ("w8a8", (Rule("conv*", LayerSpec(WeightSpec(3), ActivationSpec(8))), Rule("*", LayerSpec(WeightSpec(6), ActivationSpec(8))))),
    ],
)  # fmt: skip
def test_a_predicted_size_is_near_the_files(network: type[nn.Module], folded: bool, preset: str, rules: Sequence[Rule]) -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 3, 32, 32)
    traced = trace(network().eval(), x).module
    functional_to_modules(traced)
    whole = fuse(traced, x, find_pairs(traced))[0]
    graph = whole if folded else traced
    made = plan(graph, MACHINE, preset, rules)
    layout = arrange(graph, made.specs())
    observed = Observed(graph, layout)
    observed.batch(x)
    program = convert(graph, layout, observed.grids(), round_weights(graph, layout, made.specs()))
    content = to_bytes(program, Recipe.make(model="simplecnn", preset=preset).to_yaml(), MACHINE.isa)
    assert predicted_bytes(fp32_size(whole), made.layers, made.specs()) == pytest.approx(len(content), rel=0.03)
    # What a screen edits are other specs for the same rows.
    first = plan(graph, MACHINE).layers
    assert predicted_bytes(fp32_size(whole), first, made.specs()) == predicted_bytes(fp32_size(whole), made.layers, made.specs())


def test_stored_weights_are_counted_to_the_byte() -> None:
    assert stored_bytes((10, 64, 3, 3), WeightSpec(8)) == 10 * 576 + 40
    assert stored_bytes((3, 5), WeightSpec(4)) == 8 + 12
    assert stored_bytes((3, 40), WeightSpec(3, "per-group", 32)) == 45 + 12 + 6
    assert stored_bytes((3, 40), WeightSpec(5, "per-group", 32)) == 75 + 12 + 6


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_what_is_possible_is_possible_again(name: str) -> None:
    for bits in (7, 8):
        spec, _ = legalize(PRESETS[name], CONVOLUTION, bits)
        assert legalize(spec, CONVOLUTION, bits) == (spec, None)


def test_less_than_was_asked_comes_with_a_sentence() -> None:
    spec, note = legalize(LayerSpec(WeightSpec(8, "per-group", 64), ActivationSpec(8)), CONVOLUTION, 7)
    assert spec == LayerSpec(WeightSpec(8, "per-channel", 64), ActivationSpec(7))
    assert note and "one scale per channel" in note and "7-bit activations" in note
