"""Which layers give a network's outputs, what 8 bits alone cost them, and what the proposal makes of it."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor, fx, nn

from engine.lowering.graph.layers import layers
from engine.lowering.graph.output_noise import output_layers, outputs
from engine.models.tiny_detector import TinyDetector
from engine.planning import planner
from engine.planning.layer import Output
from engine.tasks.base import Batch


def _traced(model: nn.Module, example: Tensor) -> fx.GraphModule:
    from engine.lowering.graph.trace import trace

    return trace(model.eval(), example).module


def test_both_heads_give_the_outputs_of_a_detector() -> None:
    gm = _traced(TinyDetector(), torch.zeros(1, 3, 64, 64))
    assert set(output_layers(gm)) == {"score_head", "box_head"}


def test_what_8_bits_leave_of_an_output_is_measured_against_float64() -> None:
    torch.manual_seed(0)
    model, images = TinyDetector().eval(), torch.rand(4, 3, 64, 64)
    gm = _traced(copy.deepcopy(model), images)
    found = outputs(gm, "box or score output", Batch((images,), count=4), 8)
    given: list[Tensor] = []
    model.box_head.register_forward_hook(lambda _, inputs, __: given.append(inputs[0]))
    with torch.no_grad():
        exact = model(images)["boxes"].double()
    weight, x = model.box_head.weight.detach().double(), given[0].double()
    step = weight.abs().amax((1, 2, 3), keepdim=True) / 127
    grid = (x.max() - min(x.min(), torch.tensor(0.0))) / 255
    bias = model.box_head.bias.detach().double()
    rounded = nn.functional.conv2d((x / grid).round() * grid, (weight / step).round() * step, bias, padding=1)
    expected = 10 * torch.log10(exact.square().sum() / (rounded - exact).square().sum())
    assert found["box_head"].sqnr_db == pytest.approx(float(expected), abs=0.5)


def test_the_proposal_keeps_an_output_in_8_bits_or_in_float() -> None:
    class Linears(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.scores, self.boxes = nn.Linear(256, 256), nn.Linear(256, 128), nn.Linear(256, 128)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            x = torch.relu(self.body(x))
            return self.scores(x), self.boxes(x)

    gm = _traced(Linears(), torch.rand(2, 256))
    told = {"scores": Output("box or score output", 41.0), "boxes": Output("box or score output", 12.0)}
    plan = planner.plan(layers(gm, outputs=told))
    by_path = {row.path: row for row in plan.layers}
    assert by_path["scores"].actual.weights is not None and by_path["scores"].actual.weights.bits == 8
    assert by_path["scores"].why.startswith("box or score output: 8 bits alone leave it 41 dB from fp32")
    assert by_path["boxes"].actual.weights is None and "12 dB from fp32, less than 30 dB, so it stays in float" in by_path["boxes"].why
    # Without the task's word large linear layers have 4 bits.
    unsaid = {row.path: row for row in planner.plan(layers(gm)).layers}
    assert unsaid["scores"].actual.weights is not None and unsaid["scores"].actual.weights.bits == 4
    assert replace(told["boxes"], sqnr_db=1.0) != told["boxes"]
