"""Tables in CSV: labels and numbers that images are held against, rows of features, and what is told of a bad cell."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from engine.data import registry
from engine.data.items import ItemData, targets_of
from engine.errors import EngineError, UsageError
from engine.recipe.recipe import DataPart


def images(folder: Path, names: str = "abcdef") -> None:
    folder.mkdir(exist_ok=True)
    for number, name in enumerate(names):
        Image.new("RGB", (12, 10), (number, 2 * number, 0)).save(folder / f"{name}.png")


def read(place: Path, task: str, **part: object) -> ItemData:
    return registry.items(DataPart.model_validate({"name": str(place), **part}), task)


def table(folder: Path, text: str | bytes, name: str = "labels.csv") -> Path:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


LABELS = "file,cat,dog\na.png,1,0\nb.png,0,1\nc.png,1,1\nd.png,0,0\ne.png,true,0\nf.png,0.0,1.0\n"


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("where", ["", "images"])
def test_labels_of_images_come_from_a_table(tmp_path: Path, delimiter: str, where: str) -> None:
    images(tmp_path / where)
    path = table(tmp_path, LABELS.replace(",", delimiter))
    for place in (path, tmp_path):
        data = read(place, "multilabel")
        assert data.labels == ("cat", "dog") and data.outputs == 2
        found = torch.cat([targets_of(data.split(split)) for split in ("train", "validation", "test")])  # type: ignore[arg-type]
        assert sorted(map(tuple, found.tolist())) == [(0, 0), (0, 1), (0, 1), (1, 0), (1, 0), (1, 1)]
    items = data.train.read(range(2))
    assert items.inputs.shape == (2, 3, 10, 12)
    assert torch.equal(items.targets, targets_of(data.train)[:2])


def test_a_column_names_the_split_of_each_row(tmp_path: Path) -> None:
    images(tmp_path)
    rows = "file,cat,split\na.png,1,train\nb.png,0,train\nc.png,1,val\nd.png,0,test\ne.png,0,test\n"
    data = read(table(tmp_path, rows), "multilabel")
    assert data.labels == ("cat",) and (len(data.train), len(data.validation), len(data.test)) == (2, 1, 2)
    with pytest.raises(EngineError, match="line 4, column 'split' is 'later': say train, val or test"):
        read(table(tmp_path, rows.replace(",val", ",later")), "multilabel")


def test_files_of_splits_are_read_and_labels_that_never_hold_are_told(tmp_path: Path) -> None:
    images(tmp_path)
    table(tmp_path, LABELS, "train.csv")
    table(tmp_path, "file,cat,dog\na.png,0,1\nb.png,0,1\n", "test.csv")
    data = read(tmp_path, "multilabel")
    assert len(data.test) == 2 and "test: no image has 1 of 2 labels (cat)" in data.notes
    table(tmp_path, "file,dog,cat\na.png,0,1\n", "test.csv")
    with pytest.raises(EngineError, match=r"test.csv has other columns than .*train.csv"):
        read(tmp_path, "multilabel")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "labels.csv is empty"),
        ("\n\n", "labels.csv is empty"),
        ("file,cat\n", "has a header and no rows"),
        ("file,cat\na.png,1\nb.png\n", "line 3 has 1 cell and the header 2"),
        ("file,cat\na.png,1\nb.png,\n", "line 3, column 'cat' is empty, neither 0 nor 1"),
        ("file,cat\na.png,yes\n", "line 2, column 'cat' is 'yes', neither 0 nor 1"),
        ("file,cat\na.png,2\n", "line 2, column 'cat' is '2', neither 0 nor 1"),
        ("file,cat\na.png,1\nz.png,1\n", "line 3, column 'file': there is no image z.png"),
        ("file,cat,cat\na.png,1,1\n", "line 1 has the column 'cat' twice"),
        ("file,,cat\na.png,1,1\n", "line 1 has a column without a name"),
        ("cat,dog\n1,0\n", "line 2, column 'cat' is no image file"),
        ("0.5,1,-2e3\n1,0,2\n2,0,3\n", "line 1 holds numbers alone: the first line is a header"),
        ("file\na.png\n", "has no column of labels"),
        (b"file,cat\na.png,1\n\xe4.png,1\n", "line 3 is not UTF-8 \\(byte 0xe4\\)"),
        ("file,cat\na.png,1\n".encode("utf-16"), "is in UTF-16: convert it"),
        (b"file,cat\na\0.png,1\n", "is no text, it holds binary data"),
        ("file,cat\na.png,1\n" + "x" * 1_000_000 + ",1\n", "line 3 cannot be read \\(field larger than field limit"),
        ('file,cat\na.png,1\n"b.png,1\nc.png,1\n', "line 3 cannot be read"),
    ],
)
def test_what_is_wrong_with_a_table_is_told_in_one_line(tmp_path: Path, text: str | bytes, message: str) -> None:
    images(tmp_path)
    with pytest.raises(EngineError, match=message) as told:
        read(table(tmp_path, text), "multilabel")
    assert "\n" not in str(told.value) and len(str(told.value)) < 400


@pytest.mark.parametrize("first", ["sep=;\n", ""])
def test_what_separates_cells_is_told_by_the_first_line(tmp_path: Path, first: str) -> None:
    data = read(table(tmp_path, first + '"x, y, z";target\n' + "".join(f"{i};{2 * i}\n" for i in range(9))), "regression")
    assert data.about["features"] == 1 and data.labels == ("target",)


def test_a_table_with_a_mark_and_lines_of_windows_is_read(tmp_path: Path) -> None:
    images(tmp_path)
    data = read(table(tmp_path, b"\xef\xbb\xbf" + LABELS.replace("\n", "\r\n").encode()), "multilabel")
    assert data.labels == ("cat", "dog")


def test_an_image_in_two_rows_is_told(tmp_path: Path) -> None:
    images(tmp_path)
    again = "file,cat,dog\na.png,1,0\nb.png,0,1\na.png,1,1\nc.png,0,0\na.png,0,1\n"
    assert any(
        note.startswith("2 of 5 rows name an image that another row names") for note in read(table(tmp_path, again), "multilabel").notes
    )
    assert not any("another row" in note for note in read(table(tmp_path, LABELS), "multilabel").notes)


def test_targets_are_the_columns_of_that_name_or_the_last(tmp_path: Path) -> None:
    rows = [f"{i},{i * 0.5},{i * 1000},{i - 3}" for i in range(10)]
    named = read(table(tmp_path, "target_a,x,Target b,y\n" + "\n".join(rows)), "regression")
    assert named.labels == ("target_a", "Target b") and named.about["features"] == 2
    assert "target_a, Target b are predicted from 2 columns" in named.notes[0]
    items = named.train.read(range(len(named.train)))
    assert torch.equal(items.targets[:, 0] * 1000, items.targets[:, 1]) and torch.equal(items.inputs[:, 0] * 2, items.targets[:, 0])
    last = read(table(tmp_path, "a,b,c,d\n" + "\n".join(rows)), "regression")
    assert last.labels == ("d",) and last.about["features"] == 3 and "d is predicted, the last column" in last.notes[0]


def test_numbers_are_predicted_of_images_where_a_column_names_them(tmp_path: Path) -> None:
    images(tmp_path)
    rows = "id,path,weight\n" + "".join(f"k{i},{name}.png,{i * 100}\n" for i, name in enumerate("abcdef"))
    data = read(table(tmp_path, rows), "regression")
    items = data.train.read(range(len(data.train)))
    assert items.inputs.shape[1:] == (3, 10, 12) and data.labels == ("weight",)
    assert "from the images of path; id passed over" in data.notes[0]
    # The red of an image grows with its number, and so does its weight.
    assert torch.equal(items.inputs[:, 0, 0, 0].argsort(), items.targets[:, 0].argsort())


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ("", "is empty"),
        ("abc", "is 'abc', no finite number"),
        ("nan", "is 'nan'"),
        ("1_5", "is '1_5'"),
        ("1e39", "is '1e39'"),
        ("3,5", "has 3 cells"),
    ],
)  # fmt: skip
def test_a_cell_that_is_no_number_is_told_with_its_line(tmp_path: Path, cell: str, message: str) -> None:
    with pytest.raises(EngineError, match=f"line 3.*{message}"):
        read(table(tmp_path, f"x,y\n1,2\n3,{cell}\n4,5\n"), "regression")


def test_options_of_images_are_refused_for_rows_of_numbers(tmp_path: Path) -> None:
    path = table(tmp_path, "x,y\n1,2\n3,4\n4,5\n")
    with pytest.raises(UsageError, match="names no images"):
        read(path, "regression", size=32)
    with pytest.raises(EngineError, match="has targets alone"):
        read(table(tmp_path, "target\n1\n2\n3\n"), "regression")
    with pytest.raises(UsageError, match="data set digit-ink takes no size"):
        registry.items(DataPart(name="digit-ink", size=16), "regression")
