"""What ``load_quantized`` returns is the caller's: results may be changed, and read by what takes gradients."""

from __future__ import annotations

from pathlib import Path

import driving
import pytest
import torch
from torch import Tensor, nn

import engine


class Whole(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x).relu())  # type: ignore[no-any-return]


class InIslands(Whole):
    """Python between its layers changes what the first one gives."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        if float(y.detach().sum()) > -1e9:
            y += 1
        return self.second(y)  # type: ignore[no-any-return]


@pytest.mark.parametrize("kind", [Whole, InIslands])
def test_results_may_be_changed_in_place_and_read_by_what_learns(kind: type[Whole], own_cache: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = kind().eval()
    loader = [torch.randn(4, 3, 12, 12) for _ in range(5)]
    with driving.untimed():
        engine.quantize(model=model, task=engine.Task.of(loader), out=tmp_path / "run", qat={"mode": "never"})
    loaded = engine.load_quantized(tmp_path / "run", model=kind() if kind is InIslands else None)
    with torch.no_grad():
        exact = model(loader[0])
    found = loaded(loader[0])
    assert (found - exact).norm() < 0.1 * exact.norm()
    found[:, 0] = 0
    found += 1
    head = nn.Linear(8, 2)
    head(loaded(loader[0])).sum().backward()
    assert head.weight.grad is not None and head.weight.grad.any()
