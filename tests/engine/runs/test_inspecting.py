"""One layer under the microscope, asked for at the plan and kept for the report."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from driving import TINY, drive

from engine.events import replay
from engine.events.event import Inspected
from engine.lowering import inspecting
from engine.lowering.probing import Site
from engine.recipe.decisions import Inspect
from engine.recipe.recipe import Recipe
from engine.recipe.spec import ActivationSpec, LayerSpec, WeightSpec


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    (tmp_path / "tiny.py").write_text(TINY)
    return Recipe.make(
        model=f"{tmp_path / 'tiny.py'}:make", data={"name": "digits", "calibration": 64}, qat={"mode": "never"}, slower=[],
        threshold="sqnr:-100", device="cpu",
    )  # fmt: skip


def test_a_layer_is_looked_at_while_a_run_waits_at_its_strategy(recipe: Recipe, tmp_path: Path) -> None:
    spec = LayerSpec(WeightSpec(4, "per-channel"), ActivationSpec(8, observer="percentile"))
    seen = drive(recipe, tmp_path / "run", {"quantize": [Inspect("conv2", spec), True]})
    found = seen.of(Inspected)
    (row,) = found[0].rows
    assert row.path == "conv2" and row.spec == spec and row.channels == len(row.lows)
    assert sum(row.before.counts) == sum(row.after.counts) and 2 < len(row.ticks) <= 15
    assert row.values is not None and sum(row.values.bins.counts) > 0 and row.values.low <= row.values.clip_high
    # What goes on is the plan, not what was looked at.
    assert seen.report is not None and all("w4" not in layer["actual"] for layer in seen.report.data["layers"] if layer["name"] == "conv2")
    back = replay.from_dict(json.loads(json.dumps(found[0].to_dict())))
    assert back == found[0]


def test_a_run_without_a_person_keeps_no_look_at_its_layers(recipe: Recipe, tmp_path: Path) -> None:
    assert not drive(recipe, tmp_path / "run", {}).of(Inspected)


def site(weight: torch.Tensor, bits: int) -> Site:
    module = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    module.weight.data.copy_(weight)
    step = weight.abs().amax(1, keepdim=True) / (2 ** (bits - 1) - 1)
    return Site("fc", module, (), (), lambda candidate: (weight / step).round() * step - weight)


def test_figures_of_a_layer_are_those_of_its_weights() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(32, 64, generator=generator) * 0.1
    weight[7] *= 20
    row = inspecting.rounded_layer(site(weight, 4), LayerSpec(WeightSpec(4, "per-channel"), None))
    assert len(row.ticks) == 15, "a symmetric grid of four bits has 15 levels"
    assert [one.index for one in row.outliers] == [7] and row.standing_out == 1
    assert row.highs[0] == pytest.approx(weight[7].max().item()) and row.lows[0] == pytest.approx(weight[7].min().item())
    rounded = weight.double()
    step = (rounded.abs().amax(1, keepdim=True)) / 7
    exact = (rounded / step).round() * step
    noise = (exact - rounded).square().sum()
    assert row.sqnr_db == pytest.approx(float(10 * torch.log10(rounded.square().sum() / noise)), abs=1e-3)
    assert row.zeros == pytest.approx(float((exact == 0).double().mean()), abs=1e-6) and row.clipped == 0
    magnitudes = [max(abs(a), abs(b)) for a, b in zip(row.lows, row.highs, strict=True)]
    assert magnitudes == sorted(magnitudes, reverse=True)


def test_groups_are_parts_of_their_own_grids_end() -> None:
    weight = torch.tensor([[1.0, 0.5, -1.0, 0.25, 100.0, 50.0, -100.0, 25.0, 8.0, -4.0]])
    rounded = inspecting._parts(weight, weight, WeightSpec(4, "per-group", 4))
    expected = torch.tensor([[1.0, 0.5, -1.0, 0.25, 1.0, 0.5, -1.0, 0.25, 1.0, -0.5]])
    assert torch.allclose(rounded, expected)
