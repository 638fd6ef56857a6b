"""The ``.pt2`` and OpenVINO files, each in a runtime that knows nothing of this program."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import nets
import pytest
import torch
from test_onnx import distance
from torch import Tensor

from engine.algorithms.channelwise import quantize_weight
from engine.errors import EngineError
from engine.export import openvino, pt2, safetensors
from engine.tasks.base import Batch

SPECS = [(nets.W8, 8), (nets.GROUPS, 8), (nets.W4, 4), (nets.W4, None)]


@pytest.mark.parametrize("make", nets.NETS, ids=lambda make: make.__name__)
def test_a_pt2_gives_the_programs_outputs_for_any_number_of_images(make: Any, tmp_path: Path) -> None:
    given = nets.quantized(make, nets.GROUPS)
    pt2.write(given, path := tmp_path / "model.pt2")
    runner = pt2.load(path, given)
    for count in (1, 2, 5):
        x = torch.randn(count, 3, 16, 16)
        assert distance(given.model(x), runner.run(Batch((x,)))) > 60


ALONE = """
import sys
# As where only torch is installed.
sys.modules.update(dict.fromkeys(("engine", "qtui", "onnx", "onnxruntime", "torchvision", "safetensors")))
import torch
x = torch.load("x.pt")
torch.save([torch.export.load(f"{i}.pt2").module()(x) for i in range(int(sys.argv[1]))], "y.pt")
"""


def test_a_pt2_needs_torch_alone(tmp_path: Path) -> None:
    made = [nets.quantized(nets.Residual, weights, bits) for weights, bits in SPECS]
    made.append(nets.quantized(nets.Attention))
    for i, given in enumerate(made):
        pt2.write(given, tmp_path / f"{i}.pt2")
    x = torch.randn(3, 3, 16, 16)
    torch.save(x, tmp_path / "x.pt")
    command = [sys.executable, "-I", "-c", ALONE, str(len(made))]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for given, y in zip(made, torch.load(tmp_path / "y.pt"), strict=True):
        assert distance(given.model(x), y) > 60


def test_a_pt2_stores_integers(tmp_path: Path) -> None:
    given = nets.quantized(nets.Residual, nets.GROUPS)
    pt2.write(given, path := tmp_path / "model.pt2")
    state = torch.export.load(path).state_dict
    values = {name: tensor.dtype for name, tensor in state.items() if name.endswith("values")}
    assert len(values) == 4 and set(values.values()) == {torch.uint8}


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 no archive", b"x" * 1000])
def test_a_damaged_pt2_is_one_line(content: bytes, tmp_path: Path) -> None:
    given = nets.quantized(nets.Sequence1d)
    (tmp_path / "model.pt2").write_bytes(content)
    with pytest.raises(EngineError, match=r"^[^\n]*cannot be loaded by torch.export[^\n]*$"):
        pt2.load(tmp_path / "model.pt2", given)


def test_a_foreign_pt2_is_refused(tmp_path: Path) -> None:
    class Foreign(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.mean((2, 3))

    given = nets.quantized(nets.Sequence1d)
    torch.export.save(torch.export.export(Foreign(), (given.tensors[0],)), tmp_path / "model.pt2")
    with pytest.raises(EngineError, match="was not written by this program"):
        pt2.load(tmp_path / "model.pt2", given)


@pytest.mark.parametrize("make", nets.NETS, ids=lambda make: make.__name__)
@pytest.mark.parametrize(("weights", "bits"), SPECS)
def test_openvino_gives_the_programs_outputs(make: Any, weights: Any, bits: int | None, tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    pytest.importorskip("onnx")
    given = nets.quantized(make, weights, bits)
    openvino.write(given, path := tmp_path / "model.xml")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["model.bin", "model.xml"]
    runner = openvino.load(path, given)
    for count in (1, 3):
        x = torch.randn(count, 3, 16, 16)
        # A step of four bits is a sixteenth of the range, and one that falls to the other side is much.
        assert distance(given.model(x), runner.run(Batch((x,)))) > (18 if bits == 4 else 26)


class _LargeBiases(nets.Attention):
    def __init__(self) -> None:
        super().__init__()
        self.patch.bias = torch.nn.Parameter(3 * torch.randn(16))


def test_openvino_adds_each_channels_bias_where_a_class_token_needs_the_number_of_images(tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    pytest.importorskip("onnx")
    given = nets.quantized(_LargeBiases)
    openvino.write(given, path := tmp_path / "model.xml")
    runner = openvino.load(path, given)
    for count in (1, 3):
        x = torch.randn(count, 3, 16, 16)
        assert distance(given.model(x), runner.run(Batch((x,)))) > 26


class _MeanOfTokens(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patch, self.norm = torch.nn.Conv2d(3, 48, 2, 2), torch.nn.LayerNorm(48)
        self.mix, self.head = torch.nn.Linear(48, 48), torch.nn.Linear(48, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        return self.head((x + self.mix(self.norm(x))).mean(1))


def test_openvino_takes_the_mean_of_tokens_for_any_number_of_images(tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    pytest.importorskip("onnx")
    given = nets.quantized(_MeanOfTokens)
    openvino.write(given, path := tmp_path / "model.xml")
    runner = openvino.load(path, replace(given, threads=2))
    for count in (1, 8, 64, 128):
        x = torch.randn(count, 3, 16, 16)
        assert distance(given.model(x), runner.run(Batch((x,)))) > 26


def test_damaged_openvino_files_are_one_line(tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    given = nets.quantized(nets.Sequence1d)
    (tmp_path / "model.xml").write_text("<net>")
    with pytest.raises(EngineError, match=r"^[^\n]*cannot be loaded by OpenVINO[^\n]*$"):
        openvino.load(tmp_path / "model.xml", given)


def test_safetensors_come_back_exactly(own_cache: Path, tmp_path: Path) -> None:
    given = nets.quantized(nets.Residual, nets.GROUPS)
    safetensors.write(given, path := tmp_path / "model.safetensors")
    runner = safetensors.load(path, given)
    assert distance(given.model(given.tensors[0]), runner.run(Batch((given.tensors[0],)))) > 40


@pytest.mark.parametrize("shape", [(5, 32), (4, 3, 3, 3), (3, 7)])
@pytest.mark.parametrize("spec", [nets.W8, nets.W4, nets.GROUPS, nets.GROUPS_OF_8])
def test_a_pt2_unpacks_the_integers_that_were_stored(shape: tuple[int, ...], spec: Any) -> None:
    weight = quantize_weight(torch.randn(shape, generator=torch.Generator().manual_seed(0)), spec)
    assert torch.equal(pt2._Stored(weight).numbers(), weight.integers().to(torch.float32))
    assert torch.equal(pt2._Stored(weight).weight(), weight.dequantize())
