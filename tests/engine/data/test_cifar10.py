"""CIFAR-10 from a folder, the cache and a network that may not be there."""

from __future__ import annotations

import pickle
import socket
import sys
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
import torch

from engine.data.images import cifar10
from engine.errors import EngineError

NAMES = [f"class{number}" for number in range(10)]


def make_cifar(folder: Path, rows: int = 20) -> Path:
    """A CIFAR-10 folder of ``rows`` images a file; the first pixel counts the images, so each is told apart."""
    folder.mkdir(parents=True)
    for number, name in enumerate((*cifar10.TRAIN_FILES, cifar10.TEST_FILE)):
        pixels = np.zeros((rows, 3072), dtype=np.uint8)
        pixels[:, 0] = number * rows + np.arange(rows)
        content = {"data": pixels, "labels": [row % 10 for row in range(rows)]}
        (folder / name).write_bytes(pickle.dumps(content, protocol=2))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": NAMES}, protocol=2))
    return folder


def _ids(data: Any) -> list[list[int]]:
    return [split.read(torch.arange(len(split)))[0][:, 0, 0, 0].tolist() for split in (data.train, data.validation, data.test)]


def test_splits_are_disjoint_stable_and_mixed(tmp_path: Path) -> None:
    folder = make_cifar(tmp_path / cifar10.FOLDER)
    data = cifar10.load(folder)
    train, validation, test = _ids(data)
    assert (len(train), len(validation), len(test)) == (90, 10, 20)
    assert sorted(train + validation) == list(range(100)) and sorted(test) == list(range(100, 120))
    assert test != sorted(test) and train != sorted(train)
    assert _ids(cifar10.load(tmp_path)) == [train, validation, test]
    assert data.classes == tuple(NAMES) and data.shape == (3, 32, 32) and data.flip and data.pad == 4
    images, labels = data.test.read(torch.arange(20))
    assert labels.tolist() == [int(number) % 10 for number in images[:, 0, 0, 0]]


def test_a_missing_file_or_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=f"{tmp_path} does not hold cifar-10-batches-py"):
        cifar10.load(tmp_path)
    folder = make_cifar(tmp_path / cifar10.FOLDER)
    for name in ("batches.meta", "data_batch_4", "test_batch", "data_batch_1"):
        kept = (folder / name).read_bytes()
        (folder / name).unlink()
        with pytest.raises(EngineError, match=f"{name} is missing"):
            cifar10.load(folder)
        (folder / name).write_bytes(kept)


def test_an_empty_split_is_named(tmp_path: Path) -> None:
    folder = make_cifar(tmp_path / cifar10.FOLDER)
    empty = {"data": np.zeros((0, 3072), dtype=np.uint8), "labels": []}
    (folder / "test_batch").write_bytes(pickle.dumps(empty))
    with pytest.raises(EngineError, match=f"the test split of {folder} has no images"):
        cifar10.load(folder)


def test_offline_download_says_what_to_do_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("QTUI_CACHE", str(tmp_path))
    seen: list[float | None] = []

    def offline(root: str, download: bool) -> None:
        seen.append(socket.getdefaulttimeout())
        print("0%|          |")
        print("0%|          |", file=sys.stderr)
        (Path(root) / cifar10.FOLDER).mkdir()
        (Path(root) / "cifar-10-python.tar.gz").write_bytes(b"half")
        raise URLError("no route to host")

    monkeypatch.setattr("torchvision.datasets.CIFAR10", offline)
    with pytest.raises(EngineError) as caught:
        cifar10.load()
    assert str(caught.value) == (
        "CIFAR-10 could not be downloaded (no route to host): "
        "give --data DIR with a folder that holds cifar-10-batches-py, or use --data digits"
    )
    assert list((tmp_path / "data").iterdir()) == []
    assert seen == [cifar10.NETWORK_TIMEOUT_S] and socket.getdefaulttimeout() is None
    assert capfd.readouterr() == ("", "")


def test_download_goes_to_the_cache_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QTUI_CACHE", str(tmp_path))
    calls: list[str] = []

    def online(root: str, download: bool) -> None:
        calls.append(root)
        make_cifar(Path(root) / cifar10.FOLDER)

    monkeypatch.setattr("torchvision.datasets.CIFAR10", online)
    first, second = cifar10.load(), cifar10.load()
    assert len(calls) == 1 and _ids(first) == _ids(second)
    assert [entry.name for entry in (tmp_path / "data").iterdir()] == [cifar10.FOLDER]


def test_an_unwritable_cache_is_an_engine_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data").write_text("a file where the cache folder should be")
    monkeypatch.setenv("QTUI_CACHE", str(tmp_path))
    with pytest.raises(EngineError, match="could not be downloaded"):
        cifar10.load()
