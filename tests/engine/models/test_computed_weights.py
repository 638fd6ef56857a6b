"""Weights that a module computes at every call: taken as the values that they have, and quantized in every task."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import driving
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm
from torch.nn.utils.parametrize import register_parametrization

import engine
from engine.models import computed_weights
from engine.models.computed_weights import settle


class Symmetric(nn.Module):
    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return weight + weight.flip(-1)


def own(module: nn.Module) -> nn.Module:
    return register_parametrization(module, "weight", Symmetric())


def pruned(module: nn.Module) -> nn.Module:
    prune.l1_unstructured(module, "weight", 0.3)
    prune.ln_structured(module, "weight", 0.25, 2, 0)  # type: ignore[no-untyped-call]
    return module


FORMS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "weight": parametrizations.weight_norm, "spectral": parametrizations.spectral_norm, "older weight": weight_norm,
    "older spectral": spectral_norm, "own": own, "pruned": pruned,
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
@pytest.mark.parametrize("form", ["weight", "older weight", "older spectral", "pruned"])
def test_computed_weights_are_on_integers_in_a_task_of_ones_own(form: str, own_cache: Path, tmp_path: Path) -> None:
    model = net(FORMS[form])
    names, before = sorted(model.state_dict()), model(torch.ones(1, 3, 16))
    loader = [(torch.randn(8, 3, 16, generator=torch.Generator().manual_seed(i)),) for i in range(6)]
    with driving.untimed():
        data = engine.quantize(
            model=model, task=engine.Task.of(loader[:2], loader[2:4], loader[4:], metric=None), out=tmp_path / "run", qat={"mode": "never"}
        ).data
    assert [layer["name"] for layer in data["layers"]] == ["0", "2"]
    assert data["coverage"]["macs_integer"] == data["coverage"]["macs_total"] > 0
    assert sorted(model.state_dict()) == names
    # The script's own model still computes, with its own weights.
    assert torch.equal(model(torch.ones(1, 3, 16)), before)


def test_layers_that_were_copied_with_their_parametrization_are_settled_each() -> None:
    layer = parametrizations.weight_norm(nn.Linear(4, 4))
    model, x = nn.Sequential(layer, copy.deepcopy(layer), copy.deepcopy(layer)).eval(), torch.randn(3, 4)
    before, alone = model(x), layer(x)
    settle(copied := copy.deepcopy(model))
    assert torch.allclose(copied(x), before, atol=1e-6)
    assert torch.equal(model(x), before) and torch.equal(layer(x), alone)


def test_a_model_that_keeps_a_tensor_of_its_last_call_is_copied() -> None:
    class Keeping(nn.Linear):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            self.last = [super().forward(input)]
            return self.last[0]

    model = Keeping(4, 4)
    model(torch.ones(1, 4))
    assert torch.equal(computed_weights.copied(model)(torch.ones(1, 4)), model(torch.ones(1, 4)))
