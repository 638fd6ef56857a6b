"""Pipes, devices and nested headers in the place of files that a library opens by name: told at once, and never waited for."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny_language
import torch
from safetensors.torch import save_file

from engine.data.images import image_files
from engine.errors import EngineError
from engine.export import parity
from engine.export.making import fingerprint
from engine.export.registry import FORMATS
from engine.lowering.artifact import load_quantized
from engine.lowering.modules.block_checkpoint import of_others, read_block
from engine.models.transformers_folder import look
from engine.runs.reexport import _same
from engine.runs.rundir import RunDir
from engine.training import checkpoint


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_language.write_folder(tmp_path_factory.mktemp("language") / "decoder")


@pytest.fixture(autouse=True)
def at_once() -> Iterator[None]:
    """Whoever opens a pipe waits for ever."""

    def late(*_: object) -> None:
        raise AssertionError("it waits")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(30)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def pipe(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    os.mkfifo(path)
    return path


def device(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    path.symlink_to("/dev/zero")
    return path


PLACED = pytest.mark.parametrize("place", [pipe, device])


@PLACED
def test_a_quantized_model(tmp_path: Path, place: Callable[[Path], Path]) -> None:
    place(tmp_path / "model.safetensors")
    for given in (tmp_path, tmp_path / "model.safetensors"):
        with pytest.raises(EngineError, match="does not exist"):
            load_quantized(given)


@PLACED
def test_checkpoints(tmp_path: Path, place: Callable[[Path], Path]) -> None:
    path = place(tmp_path / "checkpoints" / "qat.pt")
    with pytest.raises(EngineError, match="cannot be continued"):
        checkpoint.read(path, "mine")
    with pytest.raises(EngineError, match="is damaged: delete it"):
        read_block(path, "mine", torch.nn.Linear(2, 2), ())
    assert of_others([path], "mine") == 0


@PLACED
def test_an_export(tmp_path: Path, place: Callable[[Path], Path]) -> None:
    place(tmp_path / "model.onnx")
    with pytest.raises(OSError, match="no regular file"):
        fingerprint(tmp_path, FORMATS["onnx"])
    assert not _same(tmp_path, {"format": "onnx", "sha256": "abc"})
    with pytest.raises(EngineError, match="cannot be read"):
        parity.load(FORMATS["onnx"], tmp_path / "model.onnx", None)  # type: ignore[arg-type]


@PLACED
def test_the_events_of_a_run_that_is_resumed(tmp_path: Path, place: Callable[[Path], Path]) -> None:
    place(tmp_path / "run" / "events.jsonl")
    with pytest.raises(EngineError, match="no regular file"):
        RunDir(tmp_path / "run", "m", "d", 0, resumed=True)


@PLACED
@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "generation_config.json", "model.safetensors", "config.json"])
def test_a_folder_of_a_language_model(decoder: Path, tmp_path: Path, place: Callable[[Path], Path], name: str) -> None:
    tmp_path = shutil.copytree(decoder, tmp_path / "decoder")
    look(tmp_path)
    place(tmp_path / name)
    with pytest.raises(EngineError, match=r"cannot be read|has no weights"):
        look(tmp_path)


@pytest.mark.parametrize("header", ["[" * 100_000, '{"a":' * 5000 + "1" + "}" * 5000, "null", "3", '"text"', json.dumps({"schema": [[]]})])
def test_the_header_of_a_quantized_model_nested_or_of_another_type(tmp_path: Path, header: str) -> None:
    save_file({"x": torch.zeros(1)}, tmp_path / "model.safetensors", {"qtui": header})
    with pytest.raises(EngineError) as caught:
        load_quantized(tmp_path)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize("key", ["program", "layers", "config", "matrices"])
def test_a_part_of_a_header_that_is_nested(tmp_path: Path, key: str) -> None:
    for header in ({"schema": 1, key: nested(400)}, {"schema": 1, "kind": "decoder", key: nested(400)}):
        save_file({"x": torch.zeros(1)}, tmp_path / "model.safetensors", {"qtui": json.dumps(header)})
        with pytest.raises(EngineError) as caught:
            load_quantized(tmp_path)
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


@PLACED
@pytest.mark.parametrize("read", [image_files.opened, image_files.told_size, image_files.frame_size, image_files.levels])
def test_an_image(tmp_path: Path, place: Callable[[Path], Path], read: Callable[[str], object]) -> None:
    path = place(tmp_path / "image.png")
    with pytest.raises(EngineError, match="cannot be read as an image"):
        read(str(path))
    assert image_files.turned([str(path)]) == 0
