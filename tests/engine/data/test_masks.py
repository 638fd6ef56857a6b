"""Folders of images and masks: layouts, what masks store, and what is told of those that do not fit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from engine.data import registry
from engine.data.items import ItemData
from engine.errors import EngineError
from engine.recipe.recipe import DataPart

SIDE = 16


def picture(path: Path, size: tuple[int, int] = (SIDE, SIDE), mode: str = "RGB", **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.RandomState(0).randint(0, 256, (size[1], size[0], 3)).astype(np.uint8)
    Image.fromarray(pixels).convert(mode).save(path, **options)
    return path


def mask(path: Path, numbers: np.ndarray | None = None, palette: bool = False) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if numbers is None:
        numbers = np.arange(SIDE * SIDE).reshape(SIDE, SIDE) % 3
    image = Image.fromarray(numbers.astype(np.uint8))
    if palette:
        image.putpalette([200, 30, 30, 0, 255, 0, 9, 9, 9] + [7] * 759)
    image.save(path)
    return path


def folder(top: Path, count: int = 10, **options: object) -> Path:
    for number in range(count):
        picture(top / "images" / f"{number}.png")
        mask(top / "masks" / f"{number}.png", **options)  # type: ignore[arg-type]
    return top


def read(place: Path, **part: object) -> ItemData:
    return registry.items(DataPart.model_validate({"name": str(place), **part}), "segmentation")


def everything(data: ItemData) -> tuple[torch.Tensor, torch.Tensor]:
    return data.train.read(range(len(data.train)))


def test_images_and_masks_of_one_name_are_pairs_and_are_divided(tmp_path: Path) -> None:
    data = read(folder(tmp_path))
    assert (len(data.train), len(data.validation), len(data.test)) == (7, 1, 2)
    images, masks = everything(data)
    assert images.shape == (7, 3, SIDE, SIDE) and masks.dtype == torch.int64
    assert torch.equal(masks[0], torch.arange(SIDE * SIDE).view(SIDE, SIDE) % 3)
    assert data.labels == ("0", "1", "2") and "test and validation" in " ".join(data.notes)


@pytest.mark.parametrize("order", ["split/kind", "kind/split"])
def test_folders_of_splits_are_read_both_ways(tmp_path: Path, order: str) -> None:
    for split, count in (("train", 4), ("val", 2), ("test", 3)):
        for number in range(count):
            for kind, write in (("images", picture), ("masks", mask)):
                where = tmp_path / split / kind if order == "split/kind" else tmp_path / kind / split
                write(where / f"{number}.png")
    data = read(tmp_path)
    assert (len(data.train), len(data.validation), len(data.test)) == (4, 2, 3)


def test_pascal_voc_is_read_by_its_lists_with_void_pixels_left_out(tmp_path: Path) -> None:
    top = tmp_path / "VOCdevkit" / "VOC2012"
    numbers = np.arange(SIDE * SIDE).reshape(SIDE, SIDE) % 3
    numbers[0, 0] = 255
    for name in "abcdefgh":
        picture(top / "JPEGImages" / f"{name}.jpg")
        mask(top / "SegmentationClass" / f"{name}.png", numbers, palette=True)
    picture(top / "JPEGImages" / "without.jpg")
    lists = top / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("a\nb\nc\nd\n")
    (lists / "val.txt").write_text("e\nf\ng\nh\n")
    data = read(tmp_path)
    assert (len(data.train), len(data.validation), len(data.test)) == (4, 2, 2)
    assert everything(data)[1][0, 0, :3].tolist() == [255, 1, 2]
    (lists / "val.txt").write_text("e\nwithout\n")
    with pytest.raises(EngineError, match="val.txt, line 2: without is not in SegmentationClass"):
        read(tmp_path)


def test_masks_of_black_and_white_are_two_classes(tmp_path: Path) -> None:
    data = read(folder(tmp_path, numbers=np.eye(SIDE) * 255))
    assert data.outputs == 2 and everything(data)[1].unique().tolist() == [0, 1]
    assert "255 is the class foreground" in " ".join(data.notes)


def test_a_mask_whose_name_ends_in_mask_belongs_to_its_image(tmp_path: Path) -> None:
    for number in range(4):
        picture(tmp_path / "images" / f"{number}.jpg")
        mask(tmp_path / "masks" / f"{number}_mask.png")
    picture(tmp_path / "images" / "alone.jpg")
    data = read(tmp_path)
    assert sum(map(len, (data.train, data.validation, data.test))) == 4
    assert "1 images without mask passed over (alone)" in data.notes


def test_images_of_several_sizes_are_brought_to_one_without_new_classes(tmp_path: Path) -> None:
    for number, size in enumerate([(64, 48), (48, 64), (96, 96), (64, 64)]):
        picture(tmp_path / "images" / f"{number}.png", size)
        mask(tmp_path / "masks" / f"{number}.png", np.random.RandomState(1).randint(0, 2, (size[1], size[0])) * 3)
    data = read(tmp_path)
    images, masks = everything(data)
    assert images.shape[2:] == masks.shape[1:] and images.shape[2] % 32 == 0
    assert masks.unique().tolist() == [0, 3]
    assert any("4 sizes" in note for note in data.notes)
    images, masks = everything(read(tmp_path, size=40, crop=24))
    assert images.shape[2:] == masks.shape[1:] == (24, 24)


def test_grey_images_of_16_bits_palettes_and_cmyk_are_read_as_pixels_between_0_and_1(tmp_path: Path) -> None:
    top = folder(tmp_path, 4)
    for number, mode in enumerate(("L", "P", "CMYK", "I;16")):
        (top / "images" / f"{number}.png").unlink()
        picture(top / "images" / f"{number}.tif", mode=mode if mode != "I;16" else "L")
    Image.fromarray(np.full((SIDE, SIDE), 65535, dtype=np.uint16)).save(top / "images" / "3.tif")
    data = read(top, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    images = torch.cat([split.read(range(len(split))).inputs for split in (data.train, data.validation, data.test)])
    assert images.min() >= 0 and images.max() == 1
    assert everything(read(top, channels=1))[0].shape[1] == 1


@pytest.mark.parametrize("drawn_on", ["turned", "stored"])
def test_an_image_is_turned_as_exif_asks_where_its_mask_was_drawn_on_it_so(tmp_path: Path, drawn_on: str) -> None:
    for number in range(4):
        exif = Image.Exif()
        exif[0x0112] = 6
        picture(tmp_path / "images" / f"{number}.png", (32, 16), exif=exif)
        mask(tmp_path / "masks" / f"{number}.png", np.zeros((32, 16) if drawn_on == "turned" else (16, 32)) + [[1]])
    images, masks = everything(read(tmp_path))
    assert images.shape[2:] == masks.shape[1:]
    stored = np.array(Image.open(tmp_path / "images" / "0.png"))
    wanted = np.rot90(stored, 3) if drawn_on == "turned" else stored
    shown = everything(read(tmp_path, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)))[0][0].permute(1, 2, 0).mul(255).round()
    assert np.array_equal(shown.numpy().astype(np.uint8), wanted)


def test_masks_that_do_not_fit_are_told_by_name(tmp_path: Path) -> None:
    top = folder(tmp_path)
    mask(top / "masks" / "3.png", np.zeros((8, 8)))
    with pytest.raises(EngineError, match=r"masks/3.png is 8x8 and its image .*images/3.png is 16x16"):
        read(top)
    names = tmp_path / "names.txt"
    names.write_text("sky\nroad\n")
    mask(top / "masks" / "3.png")
    with pytest.raises(EngineError, match=r"masks/\d.png has class 2 and there are 2 \(0 to 1"):
        everything(read(top, classes=str(names)))
    (top / "masks" / "3.png").write_bytes(b"")
    with pytest.raises(EngineError, match=r"masks/3.png cannot be read as an image"):
        read(top)
    pages = [Image.fromarray(np.full((SIDE, SIDE), page, dtype=np.uint8)) for page in (0, 1)]
    pages[0].save(top / "masks" / "3.tif", save_all=True, append_images=pages[1:])
    (top / "masks" / "3.png").unlink()
    with pytest.raises(EngineError, match=r"masks/3.tif has 2 pages"):
        read(top)
    (top / "masks" / "3.tif").unlink()
    picture(top / "masks" / "3.png")
    with pytest.raises(EngineError, match=r"masks/3.png is a picture in colours"):
        read(top)
    mask(top / "masks" / "3.png", np.full((SIDE, SIDE), 200))
    with pytest.raises(EngineError, match=r"hold 4 numbers up to 200"):
        read(top)
    (top / "masks" / "3.png").unlink()
    picture(top / "masks" / "3.jpg")
    with pytest.raises(EngineError, match=r"masks/3.jpg is a JPEG, which changes the numbers"):
        read(top)


def test_a_truncated_image_is_told_by_name(tmp_path: Path) -> None:
    top = folder(tmp_path)
    for path in (top / "images").iterdir():
        path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(EngineError, match=r"images/\d.png cannot be read as an image"):
        everything(read(top))


def test_a_folder_without_masks_and_images_without_partners_are_refused(tmp_path: Path) -> None:
    picture(tmp_path / "images" / "a.png")
    with pytest.raises(EngineError, match="holds no images with masks"):
        read(tmp_path)
    mask(tmp_path / "masks" / "b.png")
    with pytest.raises(EngineError, match="no image in .* has a mask of its name"):
        read(tmp_path)
    mask(tmp_path / "masks" / "a.png")
    with pytest.raises(EngineError, match="1 items cannot be divided"):
        read(tmp_path)


def test_classes_that_a_split_does_not_show_are_told(tmp_path: Path) -> None:
    top = folder(tmp_path, 4)
    (tmp_path / "images").rename(tmp_path / "all")
    for split in ("train", "test"):
        for number in range(4):
            picture(top / "images" / split / f"{number}.png")
            mask(top / "masks" / split / f"{number}.png", np.full((SIDE, SIDE), number % 2 if split == "test" else number % 3))
    assert "test: no pixels of 1 of 3 classes (2)" in read(top).notes


def test_scenes_are_the_same_each_time_and_test_scenes_are_made_of_test_scans() -> None:
    data, again = (registry.items(DataPart(name="digit-scenes"), "segmentation") for _ in range(2))
    for split in ("train", "validation", "test"):
        found, same = (one.split(split).read(range(16)) for one in (data, again))  # type: ignore[arg-type]
        assert torch.equal(found.inputs, same.inputs) and torch.equal(found.targets, same.targets)
    masks = data.test.read(range(len(data.test))).targets
    assert masks.unique().tolist() == list(range(11))
