"""Models in another precision than float32: taken as float32 where their forward allows it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import driving
import pytest
import torch
from torch import Tensor, nn

import engine
from engine.models.widened import tried_in_float32

KINDS = [torch.float16, torch.bfloat16, torch.float64]


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1)).eval()


def run(model: nn.Module, kind: torch.dtype, out: Path) -> dict[str, Any]:
    loader = [torch.randn(4, 3, 12, 12).to(kind) for _ in range(5)]
    with driving.untimed():
        return engine.quantize(model=model, task=engine.Task.of(loader), out=out, preset="w8a8", qat={"mode": "never"}).data


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("given", ["as the model", "in float32"])
def test_models_of_another_precision_are_on_integers(kind: torch.dtype, given: str, own_cache: Path, tmp_path: Path) -> None:
    model = net().to(kind)
    data = run(model, kind if given == "as the model" else torch.float32, tmp_path / "run")
    assert data["coverage"]["macs_integer"] == data["coverage"]["macs_total"] > 0
    assert data["ptq"]["error"]["sqnr_db"] > 20
    # The script's own model stays in its precision.
    assert {p.dtype for p in model.parameters()} == {kind}
    x = torch.randn(2, 3, 12, 12)
    exact = net().to(kind).double()(x.double())
    assert (engine.load_quantized(tmp_path / "run")(x) - exact).norm() < 0.1 * exact.norm()


def test_a_forward_that_asks_for_its_precision_keeps_it() -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4).bfloat16()

        def forward(self, x: Tensor) -> Tensor:
            return self.second(self.first(x).bfloat16())  # type: ignore[no-any-return]

    def trial(widened: bool) -> Tensor:
        try:
            found: Tensor = model(torch.ones(1, 4))
        except RuntimeError as error:
            raise engine.errors.EngineError(str(error)) from error
        return found

    model = Mixed()
    before = model.second.weight
    found, said = tried_in_float32(model, trial)
    assert said == "" and found.dtype == torch.bfloat16 and model.second.weight is before and before.dtype == torch.bfloat16
    assert tried_in_float32(model.half(), lambda widened: widened) == (True, "its weights are float16: taken as float32")
