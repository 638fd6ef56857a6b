"""What a report says of a normalization that no convolution takes in: what the program computes it on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import driving
import pytest

from engine.events.cancellation import StopToken
from engine.kernels.base import kernel_of_steps
from engine.kernels.choose import kernels_for
from engine.kernels.probe import probe
from engine.recipe.recipe import Recipe
from engine.runs import pipeline

NET = """
import torch
from torch import nn


class NormFirst(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.pool, self.norm, self.head = nn.MaxPool2d(2), nn.BatchNorm2d(8), nn.Linear(8, 10)

    def forward(self, x):
        x = self.pool(self.first(x).relu())
        return self.head(self.second(self.norm(x).relu()).relu().mean((2, 3)))


def make():
    torch.manual_seed(3)
    return NormFirst().eval()
"""


def layers(place: Path, **recipe: Any) -> dict[str, dict[str, Any]]:
    (place / "net.py").write_text(NET)
    made = Recipe.make(
        model=f"{place / 'net.py'}:make", task="fidelity", data={"name": "random:3x16x16", "calibration": 16, "limit": 16},
        qat={"mode": "never"}, **recipe,
    )  # fmt: skip
    stop = StopToken()
    with driving.untimed():
        outcome = driving.consume(pipeline.run(made, place / "run", stop), stop)
    return {row["name"]: row for row in outcome.report.data["layers"]}


def test_a_normalization_between_integers_is_said_to_be_computed_on_them(tmp_path: Path) -> None:
    own = kernel_of_steps(kernels_for(probe()))
    if not own:
        pytest.skip("no kernel here computes steps between layers")
    rows = layers(tmp_path)
    assert rows["norm"]["kernel"] == own
    assert rows["norm"]["actual"].startswith("factor and shift, a") and "from integers to integers" in rows["norm"]["reason"]
    assert "torch" not in rows["second"]["kernel"]


def test_it_is_fp32_where_what_follows_is(tmp_path: Path) -> None:
    rows = layers(tmp_path, rules=[{"match": "second", "keep": "fp32"}])
    assert rows["norm"]["actual"] == "fp32" and rows["norm"]["kernel"] == "torch fp32"
