"""Our SGD against torch's, bit for bit, and its state in both directions."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import nn

from engine.training.sgd import SGD


def pair(seed: int = 0) -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(seed)
    first, second = (nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 3)) for _ in range(2))
    second.load_state_dict(first.state_dict())
    return first, second


def groups(model: nn.Module) -> list[dict[str, object]]:
    return [
        {"params": [p for p in model.parameters() if p.dim() > 1], "weight_decay": 1e-2, "factor": 0.5},
        {"params": [p for p in model.parameters() if p.dim() <= 1], "weight_decay": 0.0},
    ]


def steps(model: nn.Module, optimizer: SGD | torch.optim.SGD, count: int, seed: int = 1) -> None:
    draw = torch.Generator().manual_seed(seed)
    for step in range(count):
        for group in optimizer.param_groups:
            group["lr"] = 0.1 / (step + 1)
        optimizer.zero_grad()
        model(torch.randn(8, 5, generator=draw)).square().mean().backward()
        if step == 2:
            next(model.parameters()).grad = None
        optimizer.step()


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))


def test_it_computes_what_torchs_computes() -> None:
    ours, theirs = pair()
    steps(ours, SGD(groups(ours), 0.1, 0.9), 12)
    steps(theirs, torch.optim.SGD(groups(theirs), lr=0.1, momentum=0.9, nesterov=True), 12)
    assert same(ours, theirs)


def test_a_state_that_torchs_saved_goes_on_here_and_the_other_way_round() -> None:
    ours, theirs = pair()
    mine, other = SGD(groups(ours), 0.1, 0.9), torch.optim.SGD(groups(theirs), lr=0.1, momentum=0.9, nesterov=True)
    steps(ours, mine, 5)
    steps(theirs, other, 5)
    again = SGD(groups(ours), 0.1, 0.9)
    again.load_state_dict(other.state_dict())
    back = torch.optim.SGD(groups(theirs), lr=0.1, momentum=0.9, nesterov=True)
    back.load_state_dict({**mine.state_dict(), "param_groups": back.state_dict()["param_groups"]})
    steps(ours, again, 4, seed=2)
    steps(theirs, back, 4, seed=2)
    assert same(ours, theirs)


def test_what_is_loaded_is_a_copy() -> None:
    ours, theirs = pair()
    mine = SGD(groups(ours), 0.1, 0.9)
    steps(ours, mine, 2)
    other = SGD(groups(theirs), 0.1, 0.9)
    other.load_state_dict(mine.state_dict())
    before = [t["momentum_buffer"].clone() for t in mine.state_dict()["state"].values()]
    steps(theirs, other, 2)
    assert all(torch.equal(a, t["momentum_buffer"]) for a, t in zip(before, mine.state_dict()["state"].values(), strict=True))


def test_the_state_of_other_parameters_is_refused() -> None:
    ours, _ = pair()
    wrong = SGD([{"params": list(ours.parameters())[:2]}], 0.1, 0.9).state_dict()
    with pytest.raises(ValueError, match="other parameters"):
        SGD(groups(ours), 0.1, 0.9).load_state_dict(wrong)


def test_training_does_not_load_the_compiler() -> None:
    code = (
        "import sys, torch; from engine.training.sgd import SGD\n"
        "p = torch.nn.Parameter(torch.ones(2)); p.grad = torch.ones(2); SGD([{'params': [p]}], 0.1, 0.9).step()\n"
        "torch.nn.utils.clip_grad_norm_([p], 1.0); sys.exit('torch._dynamo' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
