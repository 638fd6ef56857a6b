"""Data sets by name or folder."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

from engine.data import registry
from engine.errors import EngineError, UsageError


def test_importing_the_registry_is_cheap() -> None:
    heavy = "{'torch', 'numpy', 'torchvision', 'sklearn', 'PIL'}"
    code = f"import sys; import engine.data.registry; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[3])
    assert done.stdout.strip() == "[]"


def test_entries_are_complete() -> None:
    assert [entry.name for entry in registry.of_task("classification")] == ["digits", "cifar10", "imagefolder"]
    for name, entry in registry.ENTRIES.items():
        assert entry.name == name and find_spec(entry.module) is not None and entry.description and entry.licence
    assert [entry.name for entry in registry.ENTRIES.values() if not entry.offline] == ["cifar10"]


def test_named_set_agrees_with_its_entry() -> None:
    data, entry = registry.load("digits"), registry.ENTRIES["digits"]
    assert (data.name, len(data.classes), data.shape) == (entry.name, entry.classes, entry.shape)


def test_normalisation_can_be_given_in_part() -> None:
    own = registry.load("digits")
    data = registry.load("digits", mean=(0.5, 0.5, 0.5))
    assert (data.mean, data.std) == ((0.5, 0.5, 0.5), own.std)
    images, _ = next(data.batches("test", 4))
    pixels = data.test.read(torch.arange(4))[0].numpy()
    np.testing.assert_allclose(images.numpy(), (pixels / 255 - 0.5) / own.std[0], atol=1e-5)
    with pytest.raises(UsageError, match="above zero"):
        registry.load("digits", std=(0.0, 1.0, 1.0))


def _image_folder(place: Path) -> Path:
    from PIL import Image

    for name in ("a", "b"):
        (place / name).mkdir(parents=True)
        for number in range(5):
            Image.new("RGB", (8, 8), (number,) * 3).save(place / name / f"{number}.png")
    return place


def test_folder_is_recognised(tmp_path: Path) -> None:
    place = _image_folder(tmp_path / "pictures")
    for data in (registry.load(str(place)), registry.load("imagefolder", folder=str(place))):
        assert (data.name, data.classes, data.shape) == ("pictures", ("a", "b"), (3, 8, 8))
    assert registry.load(str(place), size=4).shape == (3, 4, 4)


def test_cifar_folder_is_recognised(tmp_path: Path) -> None:
    place = tmp_path / "cifar-10-batches-py"
    place.mkdir()
    for name in (str(tmp_path), str(place)):
        with pytest.raises(EngineError, match="batches.meta is missing"):
            registry.load(name)
    with pytest.raises(EngineError, match="batches.meta is missing"):
        registry.load("cifar10", folder=str(tmp_path))


def test_missing_folder_and_unknown_name_differ(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in (str(tmp_path / "gone"), "./gone", "gone/", "~/gone-for-good"):
        with pytest.raises(EngineError, match=f"{name} does not exist") as caught:
            registry.load(name)
        assert caught.value.exit_code == 1
    with pytest.raises(EngineError, match="gone does not exist"):
        registry.load("imagefolder", folder="gone")
    with pytest.raises(UsageError, match="unknown data set 'digit' .* did you mean digits"):
        registry.load("digit")
    with pytest.raises(UsageError, match="unknown data set ''"):
        registry.load("")
    (tmp_path / "picture.png").write_bytes(b"")
    with pytest.raises(EngineError, match="picture.png is a file"):
        registry.load("picture.png")


def test_options_that_would_be_ignored_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="digits takes no folder"):
        registry.load("digits", folder=str(tmp_path))
    with pytest.raises(UsageError, match="digits takes no size"):
        registry.load("digits", size=64)
    with pytest.raises(UsageError, match="two folders"):
        registry.load(str(tmp_path), folder=str(tmp_path))
    with pytest.raises(UsageError, match="imagefolder needs a folder"):
        registry.load("imagefolder")
