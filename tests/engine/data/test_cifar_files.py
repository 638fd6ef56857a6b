"""CIFAR-10's pickles are read as data and never obeyed."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.data.images.cifar_files import read_batch, read_classes
from engine.errors import EngineError

PIXELS = np.random.RandomState(0).randint(0, 256, (6, 3072)).astype(np.uint8)
LABELS = [0, 1, 2, 3, 9, 4]


def _write(path: Path, content: Any, protocol: int = 4) -> Path:
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    return path


def _python2(pixels: np.ndarray[Any, Any], labels: list[int]) -> bytes:
    """The opcodes Python 2 wrote: byte strings for text and pixels, and numpy's old names."""
    raw = pixels.tobytes()
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85U\x01btR"
        + b"(K\x01K"
        + bytes([len(pixels)])
        + b"M\x00\x0c\x86cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89"
        + b"T"
        + len(raw).to_bytes(4, "little")
        + raw
        + b"tb"
    )
    numbers = b"](" + b"".join(b"K" + bytes([label]) for label in labels) + b"e"
    return b"\x80\x02}(U\x06labels" + numbers + b"U\x04data" + array + b"U\x0bbatch_label" + b"U\x04made" + b"u."


@pytest.mark.parametrize("protocol", range(2, 6))
def test_plain_pickles_of_every_protocol(tmp_path: Path, protocol: int) -> None:
    split = read_batch(_write(tmp_path / "data_batch_1", {"data": PIXELS, "labels": LABELS}, protocol), 10)
    assert np.array_equal(split.images.numpy(), PIXELS.reshape(-1, 3, 32, 32))
    assert split.labels.tolist() == LABELS


def test_python2_pickle(tmp_path: Path) -> None:
    path = tmp_path / "data_batch_1"
    path.write_bytes(_python2(PIXELS, LABELS))
    reference = pickle.loads(path.read_bytes(), encoding="latin1")
    assert np.array_equal(reference["data"], PIXELS)
    split = read_batch(path, 10)
    assert np.array_equal(split.images.numpy(), PIXELS.reshape(-1, 3, 32, 32))
    assert split.labels.tolist() == LABELS


@pytest.mark.parametrize("protocol", [2, 5])
def test_bytes_keys_column_order_and_label_arrays(tmp_path: Path, protocol: int) -> None:
    content = {b"data": np.asfortranarray(PIXELS), b"labels": np.array(LABELS, dtype=">i4")}
    split = read_batch(_write(tmp_path / "data_batch_1", content, protocol), 10)
    assert np.array_equal(split.images.numpy(), PIXELS.reshape(-1, 3, 32, 32))
    assert split.labels.tolist() == LABELS


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_pickle_that_calls_something_is_refused_and_not_run(tmp_path: Path, protocol: int) -> None:
    witness = tmp_path / "ran"

    class Attack:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.system, (f"touch {witness}",)

    path = _write(tmp_path / "data_batch_1", {"data": Attack(), "labels": LABELS}, protocol)
    with pytest.raises(EngineError, match=rf"data_batch_1 wants to import {os.system.__module__}\.system: not a CIFAR-10 file"):
        read_batch(path, 10)
    assert not witness.exists()
    pickle.loads(path.read_bytes())
    assert witness.exists(), "the attack would not have worked, so refusing it shows nothing"


@pytest.mark.parametrize(
    "name", ["builtins\neval", "numpy\nload", "numpy.core.multiarray\nscalar", "functools\npartial", "numpy\nndarray.dump"]
)
def test_other_imports_are_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / "batches.meta"
    path.write_bytes(f"c{name}\n.".encode())
    with pytest.raises(EngineError, match=f"wants to import {name.replace(chr(10), '.')}"):
        read_classes(path)


def test_a_file_cut_anywhere_is_named(tmp_path: Path) -> None:
    whole = pickle.dumps({"data": PIXELS, "labels": LABELS})
    for length in (0, 1, 10, 200, len(whole) // 2, len(whole) - 1):
        path = tmp_path / "data_batch_3"
        path.write_bytes(whole[:length])
        with pytest.raises(EngineError, match="data_batch_3 is cut short or damaged") as caught:
            read_batch(path, 10)
        assert "\n" not in str(caught.value)


def test_damaged_bytes_never_escape_as_another_error(tmp_path: Path) -> None:
    whole = bytearray(pickle.dumps({"data": PIXELS[:1], "labels": [3]}, protocol=2))
    random = np.random.RandomState(0)
    path = tmp_path / "data_batch_1"
    for position in [*range(150), *range(len(whole) - 40, len(whole))]:
        damaged = whole.copy()
        damaged[position] = random.randint(256)
        path.write_bytes(damaged)
        try:
            split = read_batch(path, 10)
        except EngineError as error:
            assert "data_batch_1" in str(error)
        else:
            assert split.images.shape == (1, 3, 32, 32)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ({"labels": LABELS}, "no entry 'data'"),
        ({"data": PIXELS}, "no entry 'labels'"),
        ({"data": PIXELS[:, :100], "labels": LABELS}, r"uint8 \(6, 100\)"),
        ({"data": PIXELS.astype(np.int64), "labels": LABELS}, "int64"),
        ({"data": PIXELS.astype(np.float32), "labels": LABELS}, "plain integers"),
        ({"data": np.array([[None]]), "labels": LABELS}, "damaged"),
        ({"data": "pixels", "labels": LABELS}, "a bytes where|a str where"),
        ({"data": PIXELS, "labels": LABELS[:-1]}, r"\(5,\) labels for 6 images"),
        ({"data": PIXELS, "labels": [0, 1, 2, 3, 4, 10]}, "label 10 but only classes 0..9"),
        ({"data": PIXELS, "labels": [0, 1, 2, 3, 4, -1]}, "label -1"),
        ({"data": PIXELS, "labels": [0.5] * 6}, "a list where"),
        ({"data": PIXELS, "labels": [2**70] * 6}, "damaged"),
        ([PIXELS], "holds a list"),
    ],
)
def test_wrong_content_is_named(tmp_path: Path, content: Any, complaint: str) -> None:
    path = _write(tmp_path / "test_batch", content)
    with pytest.raises(EngineError, match=complaint) as caught:
        read_batch(path, 10)
    assert "test_batch" in str(caught.value)


def test_class_names(tmp_path: Path) -> None:
    path = tmp_path / "batches.meta"
    assert read_classes(_write(path, {"label_names": ["a", "b"]})) == ("a", "b")
    assert read_classes(_write(path, {b"label_names": [b"a", b"b"]}, 2)) == ("a", "b")
    wrong: list[dict[str, Any]] = [{}, {"label_names": []}, {"label_names": [1]}]
    for content in wrong:
        with pytest.raises(EngineError, match="batches.meta has no list of class names"):
            read_classes(_write(path, content))
