"""Our AdamW against torch's, and its state in both directions."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from engine.training.adamw import AdamW

OPTIONS: dict[str, Any] = {"lr": 0.05, "betas": (0.8, 0.95), "eps": 1e-8}


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 3))


def groups(of: nn.Module) -> list[dict[str, Any]]:
    return [
        {"params": [p for p in of.parameters() if p.dim() > 1], "weight_decay": 0.3},
        {"params": [p for p in of.parameters() if p.dim() <= 1], "weight_decay": 0.0},
    ]


def steps(of: nn.Module, optimizer: AdamW | torch.optim.AdamW, count: int, seed: int = 1) -> None:
    draw = torch.Generator().manual_seed(seed)
    for step in range(count):
        for group in optimizer.param_groups:
            group["lr"] = 0.1 / (step + 1)
        optimizer.zero_grad()
        of(torch.randn(8, 5, generator=draw)).square().mean().backward()
        if step == 2:
            next(of.parameters()).grad = None
        optimizer.step()


def test_it_steps_as_torchs_does() -> None:
    ours, theirs = model(), model()
    steps(ours, AdamW(groups(ours), **OPTIONS), 12)
    steps(theirs, torch.optim.AdamW(groups(theirs), foreach=False, **OPTIONS), 12)
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-6, atol=1e-7)
    assert not torch.equal(next(ours.parameters()), next(model().parameters()))


@pytest.mark.parametrize("ours_first", [True, False])
def test_its_state_goes_on_in_torchs_and_back(ours_first: bool) -> None:
    def make(of: nn.Module, ours: bool) -> AdamW | torch.optim.AdamW:
        return AdamW(groups(of), **OPTIONS) if ours else torch.optim.AdamW(groups(of), foreach=False, **OPTIONS)

    whole, parted = model(), model()
    straight = make(whole, True)
    steps(whole, straight, 5)
    steps(whole, straight, 5, seed=2)
    first = make(parted, ours_first)
    steps(parted, first, 5)
    second = make(parted, not ours_first)
    second.load_state_dict(first.state_dict())
    steps(parted, second, 5, seed=2)
    for mine, other in zip(whole.parameters(), parted.parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-6)


def test_the_state_of_other_parameters_is_refused() -> None:
    of = model()
    with pytest.raises(ValueError, match="other parameters"):
        AdamW([{"params": list(of.parameters())}], 0.1).load_state_dict(AdamW(groups(of), 0.1).state_dict())
