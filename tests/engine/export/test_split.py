"""Convolutions that round their own result before a residual or an activation: on which grid, and what that changes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import nets
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.export import split as splitting
from engine.export.onnx import file as form
from engine.export.split import split
from engine.lowering.graph.program import Step, grid_from


class Concatenated(nn.Module):
    """Residual blocks whose results are joined, so that they and what they add are on one grid."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.a, self.b = nn.Conv2d(16, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)
        self.end = nn.Conv2d(48, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        y = F.relu(self.a(x) + x)
        z = F.relu(self.b(y) + y)
        return self.end(torch.cat([x, y, z], 1))


class Swish(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(F.hardswish(self.a(3 * x)))


def others(seed: int) -> Tensor:
    return torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(seed))


def exact_sum(step: Step, made: Tensor, residual: Tensor) -> Tensor:
    """The rounded sum in doubles, by the definition of an affine grid."""
    added, out = grid_from(step.attrs["accumulate"]), grid_from(step.attrs["output"])
    assert added is not None and out is not None
    total = (made.double() + (residual.double() - added.zero_point) * added.scale).clamp(min=0)
    return ((total / out.scale).round() + out.zero_point).clamp(0, out.qmax)


def test_a_residual_on_the_grid_of_its_sum_is_rounded_as_if_once(tmp_path: Path) -> None:
    context = nets.quantized(Concatenated, activations=7)
    measured, apart = context.model.watch(others(1)), split(context).watch(others(1))
    for name in ("relu_1:q", "relu_2:q"):
        assert f"{name[:-2]}_alone:q" in apart and measured[name].float().std() > 1
        assert (measured[name] != apart[name]).double().mean() < 1e-3
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    form.write(context, tmp_path / "model.onnx")
    found = form.load(tmp_path / "model.onnx", context).layers()
    # Two values of a thousand; 0.3 is what a second rounding costs.
    assert found is not None and found.compared >= 4 and found.rms_steps < 0.05


@pytest.mark.parametrize(("parts", "steps"), [(7, 17), (5, 25), (3, 42), (1, 127)])
def test_odd_parts_of_a_step_are_rounded_to_it_as_if_once(parts: int, steps: int) -> None:
    context = nets.quantized(nets.Residual)
    (step,) = (s for s in context.model.program.steps if s.attrs.get("accumulate"))
    step = replace(step, attrs={**step.attrs, "accumulate": [0.125, 5, 127], "output": [0.125, 0, 127]})
    own = splitting._own_grid(step, -steps * 0.125, steps * 0.125)
    assert own.scale == pytest.approx(0.125 / parts, rel=1e-6) and own.qmax == 255 and own.zero_point == parts * steps
    made = (torch.rand(100_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2 - 1) * steps * 0.125
    residual = torch.arange(100_000) % 128
    once = exact_sum(step, made, residual)
    twice = exact_sum(step, ((made / own.scale).round().clamp(-own.zero_point, 255 - own.zero_point)) * own.scale, residual)
    assert torch.equal(once, twice) and once.unique().numel() > steps


def test_a_residual_that_reaches_too_far_for_whole_steps_is_on_a_grid_of_its_range() -> None:
    context = nets.quantized(nets.Residual)
    (step,) = (s for s in context.model.program.steps if s.attrs.get("accumulate"))
    step = replace(step, attrs={**step.attrs, "accumulate": [0.125, 5, 127], "output": [0.125, 0, 127]})
    own = splitting._own_grid(step, -20.0, 20.0)
    assert own.scale * own.zero_point >= 19.9 and own.scale * (255 - own.zero_point) >= 19.9


def test_a_convolution_is_clipped_only_where_its_sum_with_the_residual_stays_the_same() -> None:
    context = nets.quantized(nets.Residual)
    (step,) = (s for s in context.model.program.steps if s.attrs.get("accumulate"))
    values = context.model.watch(*context.tensors)
    out = grid_from(step.attrs["output"])
    assert out is not None
    made = torch.randn(values[step.output].shape, generator=torch.Generator().manual_seed(2)) * out.scale * out.qmax
    low, high = splitting._needed(step, made, values)
    residual = values[step.inputs[1]]
    wanted = exact_sum(step, made, residual)
    assert torch.equal(exact_sum(step, made.clamp(low, high), residual), wanted)
    assert made.min() < low < 0 < high < made.max()
    for narrower in ((low + 2 * out.scale, high), (low, high - 2 * out.scale)):
        assert not torch.equal(exact_sum(step, made.clamp(*narrower), residual), wanted)


def test_a_grid_before_an_activation_leaves_out_what_the_activation_makes_one_integer() -> None:
    context = nets.quantized(Swish)
    (alone,) = (s for s in split(context).program.steps if s.output.endswith("_alone:q"))
    own = grid_from(alone.attrs["output"])
    assert own is not None
    # hardswish is 0 below -3, and its grid has no step between there and -2.9.
    assert -3.1 < -own.zero_point * own.scale < -2.8
    with torch.no_grad():
        torch.manual_seed(0)
        assert Swish().a(3 * context.tensors[0]).min() < -4
