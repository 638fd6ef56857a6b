"""Weights and data that do not fit a model of torchvision: exit code 1, one line that says so, and nothing written."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from driving import tree
from PIL import Image
from safetensors.torch import save, save_file

from engine.models.registry import find
from qtui.__main__ import main

MODEL = "shufflenet_v2_x0_5"
State = dict[str, torch.Tensor]


def state_of(name: str = MODEL, classes: int = 10) -> State:
    torch.manual_seed(0)
    return {key: value.contiguous() for key, value in find(name).build(classes).state_dict().items()}


class Marks:
    """Leaves a mark where it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return Path.mkdir, (self.mark,)


def with_code(file: Path) -> None:
    torch.save({**state_of(), "extra": Marks(file.parent / "ran")}, file)


def plain_pickle(file: Path) -> None:
    file.write_bytes(pickle.dumps(Marks(file.parent / "ran")))


def whole_model(file: Path) -> None:
    torch.save(find(MODEL).build(10), file)


def of_another(name: str) -> Callable[[Path], None]:
    return lambda file: save_file(state_of(name), file)


def changed(key: str, shape: tuple[int, ...]) -> Callable[[Path], None]:
    return lambda file: save_file({**state_of(), key: torch.zeros(shape)}, file)


def cut(part: float) -> Callable[[Path], None]:
    def write(file: Path) -> None:
        content = save(state_of())
        file.write_bytes(content[: int(part * len(content))])

    return write


def photograph(file: Path) -> None:
    Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(file, "PNG")


def not_a_number(file: Path) -> None:
    state = state_of()
    state["conv5.1.running_var"][3] = torch.nan
    torch.save(state, file)


# What stands in the file: its name, how it is written, the words of the line.
FILES: dict[str, tuple[str, Callable[[Path], object], tuple[str, ...]]] = {
    "none": ("w.pth", lambda file: None, ("do not exist", "give a .safetensors, .pt or .pth file")),
    "empty": ("w.pth", lambda file: file.touch(), ("not a whole PyTorch file", "again")),
    "cut in its header": ("w.safetensors", cut(0.001), ("not a whole safetensors file", "again")),
    "cut at its end": ("w.safetensors", cut(0.9), ("not a whole safetensors file", "again")),
    "a photograph": ("w.pth", photograph, ("is no PyTorch file", "give the .safetensors, .pt or .pth file")),
    "a model of ONNX": ("m.onnx", lambda file: file.write_bytes(b"\x08\x0a"), ("an exported model, not weights",)),
    "with code": ("w.pt", with_code, ("cannot run code", "state_dict()")),
    "a pickle": ("w.pt", plain_pickle, ("cannot run code", "state_dict()")),
    "a whole model": ("w.pt", whole_model, ("ShuffleNetV2, not a state_dict", "save model.state_dict()")),
    "another architecture": ("w.safetensors", of_another("squeezenet1_1"), ("does not fit shufflenet_v2_x0_5", "missing:", "architecture")),
    "another width": (
        "w.safetensors",
        of_another("shufflenet_v2_x1_0"),
        ("does not fit shufflenet_v2_x0_5", "other shapes:", "architecture"),
    ),
    "another class count": ("w.safetensors", changed("fc.weight", (12, 1024)), ("is for 12 classes and digits has 10", "qtui train")),
    "another channel count": (
        "w.safetensors",
        changed("conv1.0.weight", (24, 1, 3, 3)),
        ("takes images of 1 channel and digits has 3", "for 3 channels"),
    ),
    "not a number": ("w.pth", not_a_number, ("NaN or infinity in conv5.1.running_var", "another checkpoint")),
}


def refused(arguments: list[str], place: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """The line that ``qtui run`` ends with."""
    before = tree(place)
    assert main(["run", *arguments, "--out", str(place / "run"), "--yes"]) == 1
    assert tree(place) == before
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.strip()]
    assert 40 < len(line) < 500 and "Traceback" not in line
    return line


@pytest.mark.parametrize("kind", FILES)
def test_weights_that_do_not_fit(kind: str, own_cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name, write, words = FILES[kind]
    write(tmp_path / name)
    line = refused([MODEL, "--data", "digits", "--weights", str(tmp_path / name)], tmp_path, capsys)
    assert all(word in line for word in words) and name in line, line
    assert not (tmp_path / "ran").exists()


def test_without_weights(own_cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = refused(["resnet18", "--data", "digits"], tmp_path, capsys)
    assert "resnet18 has no weights for digits" in line and "--weights FILE" in line and "qtui train resnet18 --data digits" in line


@pytest.fixture
def numbered(tmp_path: Path) -> Path:
    """1,000 classes in the order of words, which is not that of numbers."""
    source = tmp_path / "source.png"
    photograph(source)
    for index in range(1000):
        (tmp_path / "images" / f"{index}").mkdir(parents=True)
        (tmp_path / "images" / f"{index}" / "a.png").hardlink_to(source)
    return tmp_path / "images"


def test_a_thousand_classes_in_another_order(numbered: Path, own_cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = refused(["squeezenet1_1", "--data", str(numbered)], tmp_path, capsys)
    assert "its folders (0, 1 …) are not named by WordNet id" in line and "--weights FILE" in line
