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
    with pytest.raises(EngineError, match=r"b/\d+.png is 20x10 but the first image is 8x6: give --size \(data.size\)"):
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


def test_16_bits_become_8_and_deeper_pixels_are_refused(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for number, level in enumerate((0, 257, 5000, 65535)):
            Image.fromarray(np.full((4, 4), level, dtype=np.uint16)).save(tmp_path / name / f"{number}.png")
    whole = imagefolder.load(tmp_path).train.whole  # type: ignore[attr-defined]
    images, _ = whole.read(torch.arange(4))
    assert images[:, :, 0, 0].tolist() == [[0] * 3, [1] * 3, [round(5000 / 257)] * 3, [255] * 3]
    Image.fromarray(np.full((4, 4), 0.5, dtype=np.float32)).save(tmp_path / "a" / "0.tiff")
    with pytest.raises(EngineError, match="more than 16 bits"):
        read_everything(tmp_path)


def test_gif_and_tiff_are_read_also_in_folders_below_a_class(tmp_path: Path) -> None:
    for name in ("a", "b"):
        for suffix in ("gif", "tif", "tiff", "bmp"):
            make_images(tmp_path / name / "deep" / "er", 2, suffix=suffix)
        make_images(tmp_path / name, 3)
        (tmp_path / name / "notes.txt").write_text("x")
    data = imagefolder.load(tmp_path)
    assert len(data.train) + len(data.validation) + len(data.test) == 22
    assert "train: 16 images in folders below a class's belong to that class" in data.notes
    assert "train: 2 files that are no images passed over (.txt)" in data.notes
    read_everything(tmp_path)


def test_a_link_back_to_a_folder_above_is_not_followed(tmp_path: Path) -> None:
    for name in ("a", "b"):
        make_images(tmp_path / name, 10)
    (tmp_path / "a" / "again").symlink_to(tmp_path)
    assert len(imagefolder.load(tmp_path).train.whole) == 20  # type: ignore[attr-defined]


def test_splits_are_found_in_any_case_and_folders_of_tools_are_no_classes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        make_images(tmp_path / "Train" / name, 10)
        make_images(tmp_path / "TEST" / name, 3)
        make_images(tmp_path / "Val" / name, 2)
    for place in (tmp_path, tmp_path / "Train"):
        make_images(place / "__MACOSX" / "a", 2)
    (tmp_path / "Train" / "empty").mkdir()
    data = imagefolder.load(tmp_path)
    assert data.classes == ("a", "b") and [len(s) for s in (data.train, data.validation, data.test)] == [20, 4, 6]
    assert data.notes == ("train: 1 folders without images passed over (empty)",)


def test_without_a_test_folder_held_back_images_are_tested_on_and_never_those_of_training(tmp_path: Path) -> None:
    for name in ("a", "b"):
        make_images(tmp_path / "train" / name, 10)
        make_images(tmp_path / "val" / name, 6)
    data = imagefolder.load(tmp_path)
    assert _counts(data.train) == [10, 10] and _counts(data.test) == [3, 3] and _counts(data.validation) == [3, 3]
    assert {Path(path).parts[-3] for path in _paths(data.test) + _paths(data.validation)} == {"val"}
    assert not set(_paths(data.test)) & set(_paths(data.validation))
    assert data.notes == ("there is no test folder: half of the validation images are for test",)


def test_images_that_a_model_may_have_been_trained_on_are_said_to_be_such(tmp_path: Path) -> None:
    for name in ("a", "b"):
        make_images(tmp_path / name, 10)
    notes = imagefolder.load(tmp_path).notes
    assert any("test images are taken from the training images" in note and "says nothing of new ones" in note for note in notes)


def test_an_orientation_in_exif_is_said(tmp_path: Path) -> None:
    for name in ("a", "b"):
        make_images(tmp_path / name, 10, suffix="jpg")
    assert not any("EXIF" in note for note in imagefolder.load(tmp_path).notes)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (8, 6)).save(tmp_path / "a" / "000.jpg", exif=exif)
    assert any(note.startswith("1 of 20 images looked at ask by EXIF to be turned") for note in imagefolder.load(tmp_path).notes)


def test_a_split_may_lack_classes_and_has_none_of_its_own(tmp_path: Path) -> None:
    for name in ("a", "b"):
        make_images(tmp_path / "train" / name, 10)
    make_images(tmp_path / "test" / "b", 2)
    data = imagefolder.load(tmp_path)
    assert data.test.read(torch.arange(2))[1].tolist() == [1, 1]
    assert "test: no images of 1 of 2 classes (a)" in data.notes
    make_images(tmp_path / "test" / "c", 2)
    with pytest.raises(EngineError, match="training images have no class 'c' but .*test has.*--classes FILE"):
        imagefolder.load(tmp_path)


def test_a_list_of_classes_gives_their_order_also_of_those_without_images(tmp_path: Path) -> None:
    make_images(tmp_path / "train" / "cat", 1)
    make_images(tmp_path / "val" / "dog", 1)
    make_images(tmp_path / "test" / "ant", 1)
    names = tmp_path / "names.txt"
    names.write_text("dog\nbird\n\ncat\nant\n")
    data = imagefolder.load(tmp_path, classes=str(names))
    assert data.classes == ("dog", "bird", "cat", "ant")
    assert [split.read(torch.tensor([0]))[1].item() for split in (data.train, data.validation, data.test)] == [2, 0, 3]
    for content, says in (("a\na\n", "'a' twice"), ("", "no names"), ("dog\ncat\n", "no class 'ant'")):
        names.write_text(content)
        with pytest.raises(EngineError, match=says):
            imagefolder.load(tmp_path, classes=str(names))
    with pytest.raises(EngineError, match="cannot be read"):
        imagefolder.load(tmp_path, classes=str(tmp_path))


def test_crop_and_interpolation_are_those_of_pillow(tmp_path: Path) -> None:
    pixels = np.random.RandomState(0).randint(0, 256, (30, 40, 3)).astype(np.uint8)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for number in range(3):
            Image.fromarray(pixels).save(tmp_path / name / f"{number}.png")
    data = imagefolder.load(tmp_path, 20, crop=16, interpolation="bicubic")
    wanted = np.asarray(Image.fromarray(pixels).resize((26, 20), Image.Resampling.BICUBIC).crop((5, 2, 21, 18)))
    assert data.shape == (3, 16, 16)
    assert np.array_equal(data.train.read(torch.tensor([0]))[0][0].permute(1, 2, 0).numpy(), wanted)
    with pytest.raises(UsageError, match="more than the shorter side"):
        imagefolder.load(tmp_path, 20, crop=24)
    for option in ({"crop": 8}, {"interpolation": "bicubic"}):
        with pytest.raises(UsageError, match="give --size"):
            imagefolder.load(tmp_path, **option)  # type: ignore[arg-type]


def test_empty_places_are_named(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=f"{tmp_path} has 0 class folders"):
        imagefolder.load(tmp_path)
    make_images(tmp_path / "a", 1)
    with pytest.raises(EngineError, match=f"{tmp_path} has 1 class folders.*--classes FILE"):
        imagefolder.load(tmp_path)
    (tmp_path / "b").mkdir()
    with pytest.raises(EngineError, match=f"{tmp_path} has 1 class folders"):
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
