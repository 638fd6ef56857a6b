"""Inputs and results of other forms than images and logits, as ONNX."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import driving
import nets
import pytest
import torch
from torch import Tensor, nn

import engine
from engine.errors import EngineError
from engine.export.parity import _Sums
from engine.tasks.base import Batch, Task

pytest.importorskip("onnx")
runtime = pytest.importorskip("onnxruntime")


def test_results_for_one_item_are_compared_where_the_model_drops_its_dimension() -> None:
    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x).mean((1, 2, 3)).squeeze()

    context = nets.quantized(Last)
    x = context.tensors[0][:1]
    wanted = context.model(x)
    assert wanted.shape == ()
    sums = _Sums(Task.of([(x, None)]))
    sums.add(wanted[None] + 1, wanted, wanted, Batch((x,), count=1))
    assert sums.worst == pytest.approx(1)
    with pytest.raises(EngineError, match=r"gives \(1, 1\) where"):
        sums.add(wanted[None, None], wanted, None, Batch((x,), count=1))


class Tokens(nn.Module):
    """What a convolution makes of a length is no multiple of it."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.conv, self.head = nn.Embedding(50, 12), nn.Conv1d(12, 8, 3), nn.Linear(8, 4)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.conv(self.embed(ids).transpose(1, 2)).relu().mean(2))


class Bytes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.conv(pixels.float() / 255).relu().mean((2, 3))


@pytest.mark.parametrize(("kind", "inputs", "said"), [
    (Tokens, lambda n: torch.randint(0, 50, (n, 12)), "for sequences of 12 alone"),
    (Bytes, lambda n: torch.randint(0, 256, (n, 3, 9, 9), dtype=torch.uint8), ""),
], ids=["lengths", "bytes"])  # fmt: skip
def test_inputs_of_ones_own_have_an_onnx_form(kind: type[nn.Module], inputs: Any, said: str, own_cache: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = kind().eval()
    with driving.untimed():
        task = Task.of([inputs(4) for _ in range(5)])
        data = engine.quantize(model=model, task=task, out=tmp_path / "run", qat={"mode": "never"}, export=["onnx"]).data
    entry = next(entry for entry in data["exports"] if entry["format"] == "onnx")
    assert said in entry["note"] and bool(said) == bool(entry["note"])
    session = runtime.InferenceSession(tmp_path / "run" / "model.onnx")
    x = inputs(5)
    (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    loaded = engine.load_quantized(tmp_path / "run")(x)
    assert (loaded - torch.from_numpy(found)).norm() < 0.02 * loaded.norm()
