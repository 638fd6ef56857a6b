"""What a run says of how much runs on integers: all that multiplies counts, and the rest is named."""

from __future__ import annotations

from pathlib import Path

from driving import drive

from engine.events.event import Notice
from engine.recipe.recipe import Recipe

PART = """
import torch
import torch.nn.functional as F
from torch import nn


class Part(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Conv2d(3, 8, 3, padding=1)
        self.kernel = nn.Conv2d(8, 72, 1)
        self.fc = nn.Linear(8, 10)

    def forward(self, x):
        y = self.a(x).relu()
        own = self.kernel(y.mean((2, 3), keepdim=True)).flatten(1)
        z = torch.einsum("nchw,nck->nkhw", y, own.reshape(-1, 8, 9))
        return self.fc(y.mean((2, 3)) + z.mean((2, 3)).mean(1, keepdim=True))


def make():
    torch.manual_seed(0)
    return Part()
"""


def test_products_of_values_count_and_are_named(tmp_path: Path, own_cache: Path) -> None:
    file = tmp_path / "part.py"
    file.write_text(PART)
    recipe = Recipe.make(
        model=f"{file}:make", preset="w8a8", data={"calibration": 32, "limit": 64}, threshold="drop:1", qat={"mode": "never"}
    )
    outcome = drive(recipe, tmp_path / "run")
    covered = outcome.data["coverage"]
    # Digits are 8×8 or larger: what counts is that each figure is the product of the sizes.
    side = covered["rest"][0]["macs"] // (8 * 9)
    assert [row["operation"] for row in covered["rest"]] == ["einsum()"] and covered["rest"][0]["count"] == 1
    assert covered["macs_integer"] == side * 8 * 27 + 8 * 72 + 8 * 10
    assert covered["macs_total"] == covered["macs_integer"] + side * 72
    assert covered["layers"] == 4 and covered["integer_layers"] == 3
    sentence = "3 of 4 convolutions, linear layers and matrix products run on integers"
    assert any(notice.text.startswith(sentence) and "einsum()" in notice.text for notice in outcome.of(Notice))
    assert sentence in (tmp_path / "run" / "report.md").read_text()
