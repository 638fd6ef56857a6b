"""A model, a loader or a name where something else belongs, and models that take other inputs, are told in one line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import engine
from engine import Recipe
from engine.errors import EngineError, UsageError


def net(channels: int = 3) -> nn.Module:
    return nn.Sequential(nn.Conv2d(channels, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10)).eval()


def loader() -> Any:
    return DataLoader(TensorDataset(torch.randn(8, 3, 8, 8), torch.zeros(8, dtype=torch.int64)), 4)


def task() -> engine.Task:
    return engine.Task.of(loader(), metric=lambda outputs, targets: 1.0)


CALLS: dict[str, tuple[Callable[[Any], object], str]] = {
    "a model first": (lambda out: engine.quantize(net(), out), "first argument is a model, Sequential: .*Task.of"),  # type: ignore[arg-type]
    "a name first": (lambda out: engine.quantize("simplecnn", out), "no recipe but str: a name goes into a recipe"),  # type: ignore[arg-type]
    "a number first": (lambda out: engine.quantize(3, out), "no recipe but int"),  # type: ignore[arg-type]
    "a name as the model": (lambda out: engine.quantize(model="simplecnn", task=task(), out=out), "model is no nn.Module but str"),
    "a loader as the data": (lambda out: engine.quantize(model=net(), task=task(), out=out, data=loader()), "data is a DataLoader"),
    "a loader in a recipe": (lambda out: Recipe.make(model="simplecnn", data=loader()), "data is a DataLoader: .*Task.of"),
    "a loader as the task": (lambda out: engine.quantize(model=net(), task=loader(), out=out), "task is a DataLoader"),
}  # fmt: skip


@pytest.mark.parametrize("name", CALLS)
def test_what_is_given_in_anothers_place_is_told_in_one_line(name: str, own_cache: Path, tmp_path: Path) -> None:
    call, says = CALLS[name]
    with pytest.raises(UsageError, match=says) as caught:
        call(tmp_path / "out")
    assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()


FACTORIES = """
from torch import nn


def gray():
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10))


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 10)

    def forward(self, left, right):
        return self.head((self.conv(left) + self.conv(right)).mean((2, 3)))
"""


@pytest.mark.parametrize(
    ("factory", "says"),
    [("gray", "0 takes 1 channels and the images have 3"), ("Two", "it takes left, right: give a task of your own that yields them")],
)
def test_a_model_of_other_inputs_is_told_what_helps(factory: str, says: str, own_cache: Path, tmp_path: Path) -> None:
    (tmp_path / "factories.py").write_text(FACTORIES)
    with pytest.raises(EngineError, match=says):
        engine.quantize(Recipe.make(model=f"{tmp_path / 'factories.py'}:{factory}", data={"name": "digits"}), tmp_path / "out")
