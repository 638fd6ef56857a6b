"""Boxes of one's own: COCO, YOLO and VOC say the same of the same images, and what cannot be read is told in one line with its place."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from engine.data import registry
from engine.data.boxes import digit_boxes
from engine.data.boxes.base import Shifted, target
from engine.data.boxes.files import Letterbox
from engine.data.items import ItemData, Items
from engine.errors import EngineError, UsageError
from engine.recipe.recipe import DataPart

NAMES = ("cat", "dog")
# Of each image: width, height, and boxes (x1, y1, x2, y2, class) in pixels.
IMAGES: dict[str, tuple[int, int, list[tuple[int, int, int, int, int]]]] = {
    f"{i}.png": (64, 32, [(4 + i, 4, 20 + i, 20, 0), (30, 10, 60, 30, 1)]) for i in range(6)
}


def _pictures(place: Path) -> None:
    place.mkdir(parents=True)
    for i, (name, (width, height, _)) in enumerate(IMAGES.items()):
        Image.fromarray(np.full((height, width, 3), 10 * i, dtype=np.uint8)).save(place / name)


def coco(top: Path, change: Callable[[dict[str, Any]], None] = lambda content: None) -> Path:
    _pictures(top / "images")
    content: dict[str, Any] = {"images": [], "annotations": [], "categories": [{"id": 7, "name": "dog"}, {"id": 3, "name": "cat"}]}
    for i, (name, (width, height, boxes)) in enumerate(IMAGES.items()):
        content["images"].append({"id": i, "file_name": name, "width": width, "height": height})
        for x1, y1, x2, y2, label in boxes:
            number, category = len(content["annotations"]), (3, 7)[label]
            box = [x1, y1, x2 - x1, y2 - y1]
            content["annotations"].append({"id": number, "image_id": i, "category_id": category, "bbox": box, "iscrowd": 0})
    change(content)
    (top / "annotations").mkdir()
    (top / "annotations" / "all.json").write_text(json.dumps(content))
    return top


def yolo(top: Path, **lines: str) -> Path:
    _pictures(top / "images")
    (top / "labels").mkdir()
    (top / "data.yaml").write_text("names: [cat, dog]\nnc: 2\n")
    for name, (width, height, boxes) in IMAGES.items():
        rows = [
            f"{label} {(x1 + x2) / 2 / width} {(y1 + y2) / 2 / height} {(x2 - x1) / width} {(y2 - y1) / height}"
            for x1, y1, x2, y2, label in boxes
        ]
        stem = name.removesuffix(".png")
        (top / "labels" / f"{stem}.txt").write_text(lines.get(f"_{stem}", "\n".join(rows) + "\n"))
    return top


def voc(top: Path, change: Callable[[str], str] = lambda text: text) -> Path:
    _pictures(top / "JPEGImages")
    (top / "Annotations").mkdir()
    for name, (width, height, boxes) in IMAGES.items():
        objects = "".join(
            f"<object><name>{NAMES[label]}</name><difficult>0</difficult><bndbox><xmin>{x1 + 1}</xmin><ymin>{y1 + 1}</ymin>"
            f"<xmax>{x2}</xmax><ymax>{y2}</ymax></bndbox></object>"
            for x1, y1, x2, y2, label in boxes
        )
        size = f"<size><width>{width}</width><height>{height}</height></size>"
        text = f"<annotation><filename>{name}</filename>{size}{objects}</annotation>"
        (top / "Annotations" / name.replace(".png", ".xml")).write_text(change(text) if name == "0.png" else text)
    return top


def load(place: Path, **options: Any) -> ItemData:
    return registry.items(DataPart(name=str(place), **options), "detection")


def _all(data: ItemData) -> list[tuple[float, dict[str, torch.Tensor]]]:
    """Brightness and target of each image, darkest first."""
    found = []
    for split in ("train", "validation", "test"):
        for items, _ in data.batches(split, 4):  # type: ignore[arg-type]
            found += [(round(float(x[0, 32, 32]) * 255), one) for x, one in zip(items.inputs, items.targets, strict=True)]
    return sorted(found, key=lambda pair: pair[0])


@pytest.mark.parametrize("make", [coco, yolo, voc])
def test_each_format_gives_the_boxes_of_its_images(make: Callable[[Path], Path], tmp_path: Path) -> None:
    data = load(make(tmp_path / "data"))
    assert data.labels == NAMES and data.outputs == 2 and data.about["size"] == [64, 64]
    found = _all(data)
    assert [brightness for brightness, _ in found] == [10 * i for i in range(6)]
    for (_, one), (_, _, boxes) in zip(found, IMAGES.values(), strict=True):
        # 64×32 lies in the middle of 64×64.
        wanted = torch.tensor([[x1, y1 + 16, x2, y2 + 16] for x1, y1, x2, y2, _ in boxes], dtype=torch.float32)
        assert torch.allclose(one["boxes"], wanted, atol=1e-3)
        assert one["labels"].tolist() == [label for *_, label in boxes]
    kinds = {coco: "COCO JSON", yolo: "YOLO labels", voc: "VOC XML"}
    assert data.notes[0] == f"{kinds[make]}: 12 boxes of 2 classes"


def test_images_are_scaled_to_a_multiple_of_32(tmp_path: Path) -> None:
    data = load(yolo(tmp_path / "data"), size=100)
    assert data.about["size"] == [128, 128] and any("100 rounded up to a multiple of 32" in note for note in data.notes)
    assert torch.allclose(_all(data)[0][1]["boxes"][1], torch.tensor([60.0, 20 + 32, 120, 60 + 32]), atol=1e-3)


def test_grey_images_keep_one_channel(tmp_path: Path) -> None:
    data = load(yolo(tmp_path / "data"), channels=1)
    assert data.train.read([0]).inputs.shape == (1, 1, 64, 64)


def test_a_letterbox_moves_a_box_with_what_is_in_it() -> None:
    picture = np.zeros((50, 200, 3), dtype=np.uint8)
    picture[10:40, 120:180] = 255
    letterbox = Letterbox(96)
    image = letterbox.image(Image.fromarray(picture))
    x1, y1, x2, y2 = letterbox.boxes(torch.tensor([[120.0, 10, 180, 40]]), 200, 50)[0].round().int().tolist()
    white = (image[0] > 200).nonzero()
    assert abs(white[:, 1].min() - x1) <= 1 and abs(white[:, 1].max() + 1 - x2) <= 1
    assert abs(white[:, 0].min() - y1) <= 1 and abs(white[:, 0].max() + 1 - y2) <= 1
    assert image[0, 0, 0] == 114


def test_the_named_splits_of_coco_are_kept(tmp_path: Path) -> None:
    top = coco(tmp_path / "data")
    content = json.loads((top / "annotations" / "all.json").read_text())
    for split, places in (("train2017", range(4)), ("val2017", range(4, 6))):
        part = content | {"images": [one for one in content["images"] if one["id"] in places]}
        part["annotations"] = [one for one in content["annotations"] if one["image_id"] in places]
        (top / "annotations" / f"instances_{split}.json").write_text(json.dumps(part))
    data = load(top)
    assert (data.count("train"), data.count("validation"), data.count("test")) == (4, 1, 1)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda c: c["annotations"][1].update(bbox=[100, 100, 5, 5]), "1 boxes passed over: of no size, or outside.*annotations\\[1\\]"),
        (lambda c: c["annotations"][1].update(bbox=[5, 5, 0, 9]), "1 boxes passed over: of no size, or outside.*annotations\\[1\\]"),
        (lambda c: c["annotations"][1].update(bbox=[50, 5, 40, 9]), "1 boxes clipped.*annotations\\[1\\]"),
        (lambda c: c["annotations"][1].update(image_id=99), "1 annotations of no image passed over.*annotations\\[1\\]"),
        (lambda c: c["images"][2].update(file_name="gone.png"), "1 images that are listed are not there.*gone.png"),
        (lambda c: c["annotations"][3].update(iscrowd=1), "1 crowds count neither for nor against"),
        (lambda c: c.update(annotations=c["annotations"][2:]), "1 images without a box.*0.png"),
    ],
)
def test_what_is_odd_in_coco_is_read_and_told(change: Callable[[dict[str, Any]], None], told: str, tmp_path: Path) -> None:
    data = load(coco(tmp_path / "data", change))
    assert any(re.search(told, note) for note in data.notes), data.notes
    for _, one in _all(data):
        assert (one["boxes"][:, 2:] > one["boxes"][:, :2]).all()
        assert len(one["boxes"]) == 0 or (one["boxes"].min() >= 0 and one["boxes"].max() <= 64)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda c: c.update(annotations=[]), "has no boxes on its 6 images"),
        (lambda c: c.update(images=[]), "has no images"),
        (lambda c: c.pop("categories"), "no lists of images, annotations and categories"),
        (lambda c: c["annotations"][1].update(category_id=5), r"annotations\[1\]: there is no category 5"),
        (lambda c: c["annotations"][1].update(id=0), r"annotations\[1\]: the id 0 is there twice"),
        (lambda c: c["images"][1].update(id=0), r"images\[1\]: the id 0 is there twice"),
        (lambda c: c["categories"][1].update(id=7), r"categories\[1\]: the id 7 is there twice"),
        (lambda c: c["annotations"][1].update(bbox=[1, 2, "x", 4]), r"annotations\[1\]: its bbox is no list of four finite numbers"),
        (lambda c: c["images"][1].update(width=31), "1.png is 64x32 and its annotation says 31x32"),
        (lambda c: [one.update(file_name=f"../../{one['file_name']}") for one in c["images"]], "none of the 6 images"),
    ],
)
def test_what_is_wrong_in_coco_is_told_with_its_place(change: Callable[[dict[str, Any]], None], told: str, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=told) as error:
        _all(load(coco(tmp_path / "data", change)))
    assert "\n" not in str(error.value)


def test_annotations_that_begin_with_a_byte_order_mark_are_read(tmp_path: Path) -> None:
    top = coco(tmp_path / "data")
    file = top / "annotations" / "all.json"
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    assert len(load(top).labels) == len(load(coco(tmp_path / "plain")).labels)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b'{"images": [1, NaN]}', "NaN is no JSON"),
        ("{}".encode("utf-16"), "not UTF-8"),
        (b"[" * 5000, "no JSON"),
        (b"", "no JSON"),
    ],
)
def test_a_file_that_is_no_json_is_told(content: bytes, told: str, tmp_path: Path) -> None:
    top = coco(tmp_path / "data")
    (top / "annotations" / "all.json").write_bytes(content)
    with pytest.raises(EngineError, match=told):
        load(top)


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("2 0.5 0.5 0.1 0.1", "0.txt:1: there is no class 2"),
        ("-1 0.5 0.5 0.1 0.1", "0.txt:1: there is no class -1"),
        ("0 0.5 0.5 0.1 0.1\n0 nan 0.5 0.1 0.1", "0.txt:2: it holds NaN"),
        ("0 120 80 30 30", "0.txt:1: 120 is outside of the image"),
        ("0 0.5 0.5 0.1", "0.txt:1: it has 4 numbers"),
        ("cat 0.5 0.5 0.1 0.1", "0.txt:1: cat .* are no numbers"),
    ],
)
def test_what_is_wrong_in_labels_of_yolo_is_told_with_its_line(line: str, told: str, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=told):
        load(yolo(tmp_path / "data", _0=line))


def test_labels_of_yolo_that_are_odd_are_read_and_told(tmp_path: Path) -> None:
    outline = "1 0.1 0.2 0.5 0.2 0.3 0.9"
    top = yolo(tmp_path / "data", _0="", _1=outline, _2="0 0.5 0.5 0 0.1", _3="0 0.95 0.5 0.3 0.2")
    (top / "labels" / "4.txt").unlink()
    (top / "labels" / "extra.txt").write_text("0 0.5 0.5 0.1 0.1\n")
    data = load(top)
    found = [one for _, one in _all(data)]
    assert [len(one["boxes"]) for one in found] == [0, 1, 0, 1, 0, 2]
    assert torch.allclose(found[1]["boxes"], torch.tensor([[6.4, 16 + 6.4, 32, 16 + 28.8]]), atol=1e-3)
    assert torch.allclose(found[3]["boxes"][0, 2], torch.tensor(64.0))
    for told in (
        "empty label file.*0.png",
        "of no size.*2.txt:1",
        "clipped.*3.txt:1",
        "without a label file.*4.png",
        "without an image.*extra",
    ):
        assert any(re.search(told, note) for note in data.notes), (told, data.notes)


def test_labels_in_another_encoding_are_told(tmp_path: Path) -> None:
    top = yolo(tmp_path / "data")
    (top / "labels" / "0.txt").write_bytes("0 0.5 0.5 0.1 0.1 # Höhe".encode("latin-1"))
    with pytest.raises(EngineError, match="0.txt is not UTF-8 text"):
        load(top)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda text: '<!DOCTYPE a [<!ENTITY b "c">]>' + text, "0.xml declares a document type"),
        (lambda text: text.replace("</annotation>", ""), "0.xml:1: it is no XML"),
        (lambda text: text.replace("<xmin>5", "<xmin>nan"), "0.xml, object 1: its bndbox has no four finite numbers"),
        (lambda text: text.replace("<name>cat</name>", ""), "0.xml, object 1: it has no name"),
        (lambda text: '<?xml version="1.0" encoding="klingon"?>' + text, "0.xml:1: it is no XML"),
        (lambda text: "<a>" * 50 + "</a>" * 50, "0.xml is nested deeper"),
    ],
)
def test_what_is_wrong_in_xml_is_told_with_its_place(change: Callable[[str], str], told: str, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=told):
        load(voc(tmp_path / "data", change))


def test_difficult_objects_and_lists_of_images_are_read_as_in_voc(tmp_path: Path) -> None:
    top = voc(tmp_path / "data", lambda text: text.replace("<difficult>0", "<difficult>1", 1))
    (top / "ImageSets" / "Main").mkdir(parents=True)
    (top / "ImageSets" / "Main" / "train.txt").write_text("0\n1\n2\n3\n")
    (top / "ImageSets" / "Main" / "val.txt").write_text("4\n5\nmissing\n")
    (top / "Annotations" / "2.xml").rename(top / "Annotations" / "orphan.xml")
    text = (top / "Annotations" / "orphan.xml").read_text()
    (top / "Annotations" / "orphan.xml").write_text(text.replace("2.png", "none.png"))
    data = load(top)
    assert (data.count("train"), data.count("validation"), data.count("test")) == (3, 1, 1)
    assert sum(int(one["iscrowd"].sum()) for _, one in _all(data)) == 1
    for told in ("1 objects marked difficult", "val.txt:3", "annotations without an image.*orphan.xml", "without an annotation.*2.png"):
        assert any(re.search(told, note) for note in data.notes), (told, data.notes)


def test_an_image_that_is_cut_short_is_told_when_it_is_read(tmp_path: Path) -> None:
    top = yolo(tmp_path / "data")
    whole = (top / "images" / "3.png").read_bytes()
    (top / "images" / "3.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(EngineError, match="3.png cannot be read as an image"):
        _all(load(top))


def test_an_image_is_turned_where_its_boxes_were_drawn_on_it_so(tmp_path: Path) -> None:
    def turned(content: dict[str, Any]) -> None:
        content["images"][0].update(width=32, height=64)
        content["annotations"][0].update(bbox=[2, 40, 10, 20])

    top = coco(tmp_path / "data", turned)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(top / "images" / "0.png").save(top / "images" / "0.png", exif=exif)
    assert _all(load(top))[0][1]["boxes"][0].tolist() == [18, 40, 28, 60]


def test_a_folder_without_boxes_and_options_without_meaning_are_refused(tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()
    with pytest.raises(EngineError, match="holds no boxes"):
        load(tmp_path / "none")
    top = coco(tmp_path / "data")
    with pytest.raises(UsageError, match="data.crop 8"):
        load(top, crop=8)
    with pytest.raises(UsageError, match="digit-boxes takes no size"):
        registry.items(DataPart(name="digit-boxes", size=96), "detection")


def test_scenes_hold_their_digits_where_the_boxes_are() -> None:
    data = digit_boxes.load(DataPart(name="digit-boxes"))
    items = data.test.read(range(40))
    assert items.inputs.shape == (40, 3, 64, 64) and {len(one["labels"]) for one in items.targets} <= {1, 2, 3, 4}
    for image, one in zip(items.inputs, items.targets, strict=True):
        ground = image.amax(0).median()
        for x1, y1, x2, y2 in one["boxes"].int().tolist():
            assert image[:, y1:y2, x1:x2].amax(0).max() > ground + 0.15
        assert (one["boxes"][:, :2] >= 0).all() and (one["boxes"][:, 2:] <= 64).all()


def test_a_shift_moves_boxes_with_the_image() -> None:
    image = torch.zeros(1, 3, 32, 32)
    image[0, :, 10:20, 12:22] = 1
    items = Items(image, [target([[12, 10, 22, 20]], [4])])
    draw = torch.Generator().manual_seed(3)
    for _ in range(20):
        moved = Shifted(8)(items, draw)
        x1, y1, x2, y2 = moved.targets[0]["boxes"][0].int().tolist()
        assert (moved.inputs[0, :, y1:y2, x1:x2] == 1).all() and moved.inputs.sum() == 3 * (x2 - x1) * (y2 - y1)


def _second(text: str, top: Path) -> None:
    (top / "annotations" / text).write_bytes((top / "annotations" / "train.json").read_bytes())


def test_two_files_for_one_split_of_coco_are_refused_and_one_file_is_for_one_split(tmp_path: Path) -> None:
    top = coco(tmp_path / "data")
    (top / "annotations" / "all.json").rename(top / "annotations" / "train.json")
    _second("train_2.json", top)
    with pytest.raises(EngineError, match=r"holds two JSON files for train, train\.json and train_2\.json"):
        load(top)
    (top / "annotations" / "train.json").unlink()
    (top / "annotations" / "train_2.json").rename(top / "annotations" / "train_val.json")
    data = load(top)
    assert (data.count("train"), data.count("validation"), data.count("test")) == (4, 1, 1)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda c: c["annotations"][1].update(iscrowd="0"), r"annotations\[1\]: its iscrowd is neither 0 nor 1"),
        (lambda c: c["images"][1].update(file_name="0.png"), r"images\[1\]: its file_name is that of images\[0\]"),
        (lambda c: [one.update(bbox=[0.1, 0.2, 0.3, 0.4]) for one in c["annotations"]], r"no box reaches beyond 1 .*annotations\[0\]"),
    ],
)
def test_what_would_be_read_wrongly_in_coco_is_refused(change: Callable[[dict[str, Any]], None], told: str, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=told):
        load(coco(tmp_path / "data", change))


def test_an_image_in_two_splits_is_told(tmp_path: Path) -> None:
    top = coco(tmp_path / "data")
    (top / "annotations" / "all.json").rename(top / "annotations" / "train.json")
    _second("val.json", top)
    assert any("6 images are in several splits" in note for note in load(top).notes)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda text: text.replace("<difficult>0", "<difficult>maybe", 1), "0.xml, object 1: its difficult is neither 0 nor 1"),
        (lambda text: text.replace("0.png", "1.png"), "0.xml has the filename 1.png, and there is 0.png too"),
    ],
)
def test_what_would_be_read_wrongly_in_xml_is_refused(change: Callable[[str], str], told: str, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=told):
        load(voc(tmp_path / "data", change))


def test_an_image_with_two_annotations_in_xml_is_refused(tmp_path: Path) -> None:
    top = voc(tmp_path / "data")
    (top / "Annotations" / "copy.xml").write_bytes((top / "Annotations" / "1.xml").read_bytes())
    with pytest.raises(EngineError, match=r"copy\.xml annotates 1\.png, and 1\.xml does too"):
        load(top)


def test_difficult_in_words_is_read(tmp_path: Path) -> None:
    data = load(voc(tmp_path / "data", lambda text: text.replace("<difficult>0", "<difficult>False")))
    assert not any(int(one["iscrowd"].sum()) for _, one in _all(data))


def test_key_points_after_a_box_are_no_outline(tmp_path: Path) -> None:
    top = yolo(tmp_path / "data", _1="1 0.5 0.5 0.25 0.5 0.1 0.1 0.9 0.9")
    (top / "data.yaml").write_text("names: [cat, dog]\nkpt_shape: [2, 2]\n")
    assert torch.allclose(_all(load(top))[1][1]["boxes"], torch.tensor([[24.0, 24.0, 40.0, 40.0]]))


def test_folders_of_yolo_with_a_year_are_splits(tmp_path: Path) -> None:
    top = yolo(tmp_path / "data")
    for kind in ("images", "labels"):
        for split, some in (("train2017", (0, 1, 2, 3)), ("val2017", (4, 5))):
            (top / kind / split).mkdir()
            for i in some:
                file = next((top / kind).glob(f"{i}.*"))
                file.rename(top / kind / split / file.name)
    data = load(top)
    assert (data.count("train"), data.count("validation"), data.count("test")) == (4, 1, 1)


def test_two_images_of_one_name_have_the_boxes_of_their_label_file(tmp_path: Path) -> None:
    top = yolo(tmp_path / "data")
    Image.open(top / "images" / "1.png").save(top / "images" / "1.bmp")
    assert sum(load(top).count(split) for split in ("train", "validation", "test")) == 7


def test_an_empty_line_between_class_names_is_told_where_lines_are_counted(tmp_path: Path) -> None:
    top = yolo(tmp_path / "data")
    (top / "data.yaml").unlink()
    (top / "labels" / "classes.txt").write_text("cat\n\ndog\n")
    with pytest.raises(EngineError, match=r"classes\.txt, line 2 is empty"):
        load(top)
    (top / "labels" / "classes.txt").write_text("cat\ndog\n\n\n")
    assert load(top).labels == NAMES
