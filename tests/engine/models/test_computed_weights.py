"""Weights that a module computes at every call: taken as the values that they have, and quantized in every task."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import driving
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, spectral_norm, weight_norm
from torch.nn.utils.parametrize import register_parametrization

import engine
from engine.models.computed_weights import settle


class Symmetric(nn.Module):
    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return weight + weight.flip(-1)


def own(module: nn.Module) -> nn.Module:
    return register_parametrization(module, "weight", Symmetric())


FORMS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "weight": parametrizations.weight_norm, "spectral": parametrizations.spectral_norm, "older weight": weight_norm,
    "older spectral": spectral_norm, "own": own,
}  # fmt: skip


def net(form: Callable[[nn.Module], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(form(nn.Conv1d(3, 8, 3)), nn.ReLU(), form(nn.Conv1d(8, 4, 3)))
    model(torch.randn(4, 3, 16))
    return model.eval()


@pytest.mark.filterwarnings("ignore:.*is deprecated")
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_a_settled_model_computes_the_same_with_plain_weights(form: Callable[[nn.Module], nn.Module]) -> None:
    model, x = net(form), torch.randn(2, 3, 16)
    before = model(x)
    settle(model)
    assert torch.allclose(model(x), before, atol=1e-6)
    assert [name for name, _ in sorted(model.named_parameters())] == ["0.bias", "0.weight", "2.bias", "2.weight"]


@pytest.mark.filterwarnings("ignore:.*is deprecated")
@pytest.mark.parametrize("form", ["weight", "older weight", "older spectral"])
def test_computed_weights_are_on_integers_in_a_task_of_ones_own(form: str, own_cache: Path, tmp_path: Path) -> None:
    model = net(FORMS[form])
    names = sorted(model.state_dict())
    loader = [(torch.randn(8, 3, 16, generator=torch.Generator().manual_seed(i)),) for i in range(6)]
    with driving.untimed():
        data = engine.quantize(
            model=model, task=engine.Task.of(loader[:2], loader[2:4], loader[4:], metric=None), out=tmp_path / "run", qat={"mode": "never"}
        ).data
    assert [layer["name"] for layer in data["layers"]] == ["0", "2"]
    assert data["coverage"]["macs_integer"] == data["coverage"]["macs_total"] > 0
    assert sorted(model.state_dict()) == names
