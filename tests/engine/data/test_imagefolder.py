"""Folders of images by class."""

from __future__ import annotations

from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from engine.data.images import imagefolder
from engine.errors import EngineError, UsageError


def make_images(folder: Path, count: int, value: int = 100, size: tuple[int, int] = (8, 6), suffix: str = "png") -> None:
    """``count`` images of ``size`` (W, H) in ``folder``, grey levels ``value``, ``value + 1``, …"""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        Image.new("RGB", size, (value + number,) * 3).save(folder / f"{number:03}.{suffix}")


def _paths(split: Any) -> list[str]:
    return [split.whole.paths[index] for index in split.indices.tolist()]


def _counts(split: Any) -> list[int]:
    return torch.bincount(split.read(torch.arange(len(split)))[1]).tolist()


def test_classes_alone_are_split_by_a_fixed_seed(tmp_path: Path) -> None:
    make_images(tmp_path / "cat", 40)
    make_images(tmp_path / "ant", 20)
    (tmp_path / ".cache").mkdir()
    (tmp_path / "cat" / "notes.txt").write_text("not an image")
    data = imagefolder.load(tmp_path)
    assert data.classes == ("ant", "cat") and data.shape == (3, 6, 8) and data.name == tmp_path.name
    assert [_counts(split) for split in (data.train, data.validation, data.test)] == [[14, 28], [2, 4], [4, 8]]
    parts = [_paths(split) for split in (data.train, data.validation, data.test)]
    assert len(set(chain(*parts))) == 60
    again = imagefolder.load(tmp_path)
    assert [_paths(split) for split in (again.train, again.validation, again.test)] == parts
    assert 0 < data.train.read(torch.arange(20))[1].sum() < 20


def test_pixels_and_labels_belong_together(tmp_path: Path) -> None:
    make_images(tmp_path / "a", 10, value=0)
    make_images(tmp_path / "b", 10, value=200)
    data = imagefolder.load(tmp_path)
    images, labels = data.train.read(torch.arange(len(data.train)))
    assert images.dtype == torch.uint8 and images.shape[1:] == (3, 6, 8)
    assert torch.equal(labels, (images[:, 0, 0, 0] >= 200).long())


@pytest.mark.parametrize("validation", [None, "val", "validation", "valid"])
def test_train_test_and_perhaps_validation(tmp_path: Path, validation: str | None) -> None:
    for name in ("a", "b"):
        make_images(tmp_path / "train" / name, 20)
        make_images(tmp_path / "test" / name, 3)
        if validation:
            make_images(tmp_path / validation / name, 2)
    data = imagefolder.load(tmp_path)
    assert _counts(data.test) == [3, 3]
    assert _counts(data.validation) == [2, 2]
    assert _counts(data.train) == ([20, 20] if validation else [18, 18])
    assert {Path(path).parts[-3] for path in _paths(data.test)} == {"test"}
    assert {Path(path).parts[-3] for path in _paths(data.validation)} == {validation or "train"}
    assert not set(_paths(data.train)) & set(_paths(data.validation))


def test_train_alone_gives_up_a_test_and_a_validation_split(tmp_path: Path) -> None:
    for name in ("a", "b"):
        make_images(tmp_path / "train" / name, 20)
    data = imagefolder.load(tmp_path)
    assert [_counts(split) for split in (data.train, data.validation, data.test)] == [[14, 14], [2, 2], [4, 4]]


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    make_images(tmp_path / "train", 10)
    make_images(tmp_path / "plane", 10)
    assert imagefolder.load(tmp_path).classes == ("plane", "train")


def test_formats_and_modes_become_rgb(tmp_path: Path) -> None:
    for suffix in ("png", "jpg", "jpeg", "bmp", "webp", "ppm", "PNG"):
        make_images(tmp_path / suffix, 3, size=(8, 8), suffix=suffix)
    palette = Image.new("P", (8, 8), 1)
    palette.putpalette([0, 0, 0, 250, 10, 20])
    palette.save(tmp_path / "png" / "palette.png", transparency=b"\x00\x80")
    Image.new("L", (8, 8), 7).save(tmp_path / "png" / "grey.png")
    data = imagefolder.load(tmp_path)
    whole = data.train.whole  # type: ignore[attr-defined]
    images, _ = whole.read(torch.arange(len(whole)))
    pixel = {Path(path).name: image[:, 0, 0].tolist() for path, image in zip(whole.paths, images, strict=True)}
    assert len(images) == 23 and pixel["palette.png"] == [250, 10, 20] and pixel["grey.png"] == [7, 7, 7]


def test_another_size_is_named_unless_resizing(tmp_path: Path) -> None:
    make_images(tmp_path / "a", 6)
    make_images(tmp_path / "b", 6, size=(20, 10))
    data = imagefolder.load(tmp_path)
    with pytest.raises(EngineError, match=r"b/\d+.png is 20x10 but the first image is 8x6: set data.size in the recipe to resize"):
        list(data.batches("train", 32))
    resized = imagefolder.load(tmp_path, 16)
    assert resized.shape == (3, 16, 16)
    assert next(resized.batches("train", 32))[0].shape == (len(resized.train), 3, 16, 16)


def test_resizing_keeps_the_middle(tmp_path: Path) -> None:
    stripes = np.zeros((10, 30, 3), dtype=np.uint8)
    stripes[:, 10:20] = 200
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for number in range(3):
            Image.fromarray(stripes).save(tmp_path / name / f"{number}.png")
    images, _ = imagefolder.load(tmp_path, 10).train.read(torch.tensor([0]))
    assert (images == 200).all()
    larger, _ = imagefolder.load(tmp_path, 20).train.read(torch.tensor([0]))
    assert larger.shape == (1, 3, 20, 20) and (larger[..., 4:16] == 200).all()


def read_everything(folder: Path) -> None:
    for split in ("train", "validation", "test"):
        list(imagefolder.load(folder).batches(split, 8))


def test_damaged_images_are_named(tmp_path: Path) -> None:
    for name in ("a", "b"):
        make_images(tmp_path / name, 10)
    whole = (tmp_path / "b" / "003.png").read_bytes()
    for content in (whole[: len(whole) // 2], b"", b"no image"):
        (tmp_path / "b" / "003.png").write_bytes(content)
        with pytest.raises(EngineError, match="b/003.png cannot be read as an image") as caught:
            read_everything(tmp_path)
        assert str(caught.value).count("003.png") == 1


def test_deeper_pixels_are_refused_rather_than_clipped(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for number in range(3):
            Image.fromarray(np.full((4, 4), 5000, dtype=np.uint16)).save(tmp_path / name / f"{number}.png")
    with pytest.raises(EngineError, match="more than 8 bits"):
        imagefolder.load(tmp_path)


def test_class_sets_must_agree(tmp_path: Path) -> None:
    for name in ("a", "b"):
        make_images(tmp_path / "train" / name, 10)
    make_images(tmp_path / "test" / "a", 2)
    with pytest.raises(EngineError, match="test has no class 'b' but .*train has"):
        imagefolder.load(tmp_path)
    make_images(tmp_path / "test" / "b", 2)
    make_images(tmp_path / "test" / "c", 2)
    with pytest.raises(EngineError, match="train has no class 'c' but .*test has"):
        imagefolder.load(tmp_path)


def test_empty_places_are_named(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=f"{tmp_path} has 0 class folders"):
        imagefolder.load(tmp_path)
    make_images(tmp_path / "a", 1)
    with pytest.raises(EngineError, match=f"{tmp_path} has 1 class folders"):
        imagefolder.load(tmp_path)
    (tmp_path / "b").mkdir()
    with pytest.raises(EngineError, match=f"class folder {tmp_path / 'b'} holds no images"):
        imagefolder.load(tmp_path)
    make_images(tmp_path / "b", 1)
    with pytest.raises(EngineError, match=f"the train split of {tmp_path} has no images"):
        imagefolder.load(tmp_path)


def test_an_empty_test_folder_is_named(tmp_path: Path) -> None:
    for name in ("a", "b"):
        make_images(tmp_path / "train" / name, 10)
        (tmp_path / "test" / name).mkdir(parents=True)
    with pytest.raises(EngineError, match=f"the test split of {tmp_path / 'test'} has no images"):
        imagefolder.load(tmp_path)


def test_wrong_use_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="needs a folder"):
        imagefolder.load(None)
    with pytest.raises(UsageError, match="data.size 0"):
        imagefolder.load(tmp_path, 0)
