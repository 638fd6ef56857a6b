"""What cannot work: one line that names the thing and the next step, and nothing left behind."""

from __future__ import annotations

import contextlib
import errno
import os
import pickle
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from driving import consume, drive, state_of, tree, untimed
from PIL import Image
from safetensors.torch import save_file

from engine.data.images import digits
from engine.data.images.base import Subset
from engine.errors import EngineError, UsageError
from engine.events.cancellation import StopToken
from engine.events.event import Ask, EpochFinished, Event, Notice, StageStarted
from engine.models.custom import build
from engine.models.simplecnn import SimpleCNN
from engine.paths import check_writable, write_atomic
from engine.recipe.recipe import Recipe
from engine.runs import pipeline
from engine.runs.pipeline import train

Make = Callable[..., Recipe]
FULL = OSError(errno.ENOSPC, "No space left on device")


def refused(recipe: Recipe, folder: Path, kind: type[EngineError], *says: str, on_event: Any = None) -> str:
    """The message of a run that must fail with ``kind``, whether its folder is new or holds things already."""
    told = []
    new, old = folder / "made" / "deep" / "new", folder / "old"
    (old / "sub").mkdir(parents=True)
    for name in ("notes.txt", "sub/model.safetensors", "recipe.yaml", "report.json", "state.json", "events.jsonl"):
        (old / name).write_text(f"mine: {name}")
    before = tree(folder)
    for out in (new, old):
        outcome = drive(recipe, out, on_event=on_event)
        assert type(outcome.error) is kind, outcome.error
        told.append(str(outcome.error))
        assert tree(folder) == before
    for text in told:
        assert "\n" not in text and 20 < len(text.replace(str(folder), "")) < 500
        for word in says:
            assert word in text
    return told[0]


@pytest.fixture
def weights_of(tiny_file: Path) -> dict[str, torch.Tensor]:
    return dict(build(f"{tiny_file}:make").state_dict())


@pytest.mark.parametrize(("name", "near"), [("simplecn", "simplecnn"), ("SimpleCNN", "simplecnn"), ("zzz", "simplecnn")])
def test_unknown_model(own_cache: Path, tmp_path: Path, name: str, near: str) -> None:
    refused(Recipe.make(model=name), tmp_path, UsageError, repr(name), near, "file.py:factory")


def test_missing_weights(tiny: Make, tmp_path: Path) -> None:
    refused(tiny(weights=str(tmp_path / "none.pt")), tmp_path, EngineError, "none.pt", "do not exist", "give a")
    refused(tiny(weights=str(tmp_path)), tmp_path / "again", EngineError, "is a folder")


@pytest.mark.parametrize("name", ["w.safetensors", "w.pt"])
@pytest.mark.parametrize("part", [0, 4, 9, 200, -1])
def test_truncated_weights(tiny: Make, tmp_path: Path, weights_of: Any, name: str, part: int) -> None:
    file = tmp_path / name
    save_file(weights_of, file) if name.endswith("safetensors") else torch.save(weights_of, file)
    file.write_bytes(file.read_bytes()[:part])
    refused(tiny(weights=str(file)), tmp_path, EngineError, name, "not a whole", "again")


@pytest.mark.parametrize("name", ["w.safetensors", "w.pth", "w"])
@pytest.mark.parametrize("content", [b"\0" * 64, b"not weights at all, but a text\n" * 9, os.urandom(512), b"\x08\0\0\0\0\0\0\0{}      "])
def test_garbage_weights(tiny: Make, tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    refused(tiny(weights=str(tmp_path / name)), tmp_path, EngineError, str(tmp_path / name))


def test_weights_of_another_architecture(tiny: Make, tmp_path: Path) -> None:
    save_file(SimpleCNN(10).state_dict(), tmp_path / "other.safetensors")
    text = refused(
        tiny(weights=str(tmp_path / "other.safetensors")), tmp_path, EngineError, "missing: fc.weight", "fc1.weight", "conv1.weight is"
    )
    assert "(32, 3, 3, 3)" in text and "(8, 3, 3, 3)" in text


def test_weights_of_another_class_count(own_cache: Path, tmp_path: Path) -> None:
    save_file(SimpleCNN(7).state_dict(), tmp_path / "seven.safetensors")
    recipe = Recipe.make(model="simplecnn", weights=str(tmp_path / "seven.safetensors"))
    refused(recipe, tmp_path, EngineError, "fc2.weight is (7, 128)", "(10, 128)", "class count")


class Bomb:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("way", ["torch", "legacy", "pickle", "nested"])
def test_a_pickle_that_runs_code_is_not_opened(tiny: Make, tmp_path: Path, weights_of: Any, way: str) -> None:
    file, mark = tmp_path / "w.pt", tmp_path / "executed"
    if way == "pickle":
        file.write_bytes(pickle.dumps(Bomb(mark)))
    elif way == "nested":
        torch.save({"state_dict": {**weights_of, "extra": Bomb(mark)}}, file)
    else:
        torch.save(Bomb(mark), file, _use_new_zipfile_serialization=way == "torch")
    refused(tiny(weights=str(file)), tmp_path, EngineError, "w.pt", "cannot run code", "state_dict")
    assert not mark.exists()
    with contextlib.suppress(Exception):
        torch.load(file, weights_only=False)
    assert mark.exists(), "the bomb of this test must be a real one"


@pytest.mark.parametrize("content", [[1, 2], {"a": 1}, {}, torch.zeros(3)])
def test_a_file_without_a_state(tiny: Make, tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "w.pt")
    refused(tiny(weights=str(tmp_path / "w.pt")), tmp_path, EngineError, "w.pt", "state_dict")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(tiny: Make, tmp_path: Path, weights_of: Any, value: float) -> None:
    weights_of["bn2.running_var"] = torch.full((16,), value)
    torch.save(weights_of, tmp_path / "w.pt")
    refused(tiny(weights=str(tmp_path / "w.pt")), tmp_path, EngineError, "NaN", "bn2.running_var", "use another")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (torch.zeros_like, "holds nothing but zeros"),
        (lambda t: (t * 100).to(torch.int8), "holds int8 where the model has floating-point weights, in "),
        (lambda t: t > 0, "holds bool where"),
        (lambda t: t.to(torch.complex64), "holds complex64 where"),
    ],
)
@pytest.mark.parametrize("name", ["model.safetensors", "model.pt"])
def test_weights_that_are_no_trained_numbers(
    tiny: Make, tmp_path: Path, weights_of: Any, change: Callable[[torch.Tensor], torch.Tensor], said: str, name: str
) -> None:
    state = {key: change(value) if value.is_floating_point() else value for key, value in weights_of.items()}
    save_file(state, tmp_path / name) if name.endswith("safetensors") else torch.save(state, tmp_path / name)
    refused(tiny(weights=str(tmp_path / name)), tmp_path / "out", EngineError, name, said)


def test_a_factory_that_gives_nan(own_cache: Path, tmp_path: Path, tiny_file: Path) -> None:
    file = tmp_path / "m.py"
    file.write_text(tiny_file.read_text() + "\ndef bad():\n    m = make()\n    m.fc.bias.data[3] = float('nan')\n    return m\n")
    refused(Recipe.make(model=f"{file}:bad"), tmp_path / "out", EngineError, "NaN", "fc.bias")


def test_a_model_that_overflows(own_cache: Path, tmp_path: Path, tiny_file: Path) -> None:
    file = tmp_path / "m.py"
    file.write_text(
        tiny_file.read_text() + "\ndef bad():\n    m = make()\n    m.bn1.running_var.zero_()\n    m.bn1.eps = 0\n    return m\n"
    )
    refused(Recipe.make(model=f"{file}:bad"), tmp_path / "out", EngineError, "NaN or infinity on the first images")


@pytest.mark.parametrize("where", ["nowhere/at/all", "./nowhere"])
def test_missing_data_folder(tiny: Make, tmp_path: Path, where: str) -> None:
    refused(tiny(data={"name": where}), tmp_path, EngineError, where, "does not exist", "--data")


def test_misspelt_data_set(tiny: Make, tmp_path: Path) -> None:
    refused(tiny(data={"name": "digit"}), tmp_path, UsageError, "'digit'", "digits")


def folder_of_images(place: Path, size: int = 16, classes: int = 3, count: int = 8) -> Path:
    for label in range(classes):
        (place / f"class{label}").mkdir(parents=True)
        for i in range(count):
            Image.new("RGB", (size, size), (40 * label, 9 * i, 100)).save(place / f"class{label}" / f"{i}.png")
    return place


def test_images_of_another_size(own_cache: Path, tmp_path: Path) -> None:
    data = folder_of_images(tmp_path / "images")
    recipe = Recipe.make(model="simplecnn", data={"name": str(data)})
    refused(recipe, tmp_path / "out", EngineError, "3×16×16", "3×32×32", "data.size")


def test_data_size_brings_images_to_size(own_cache: Path, tmp_path: Path) -> None:
    data = folder_of_images(tmp_path / "images")
    save_file(SimpleCNN(3).state_dict(), tmp_path / "w.safetensors")
    recipe = Recipe.make(model="simplecnn", data={"name": str(data), "size": 32}, weights=str(tmp_path / "w.safetensors"))
    assert drive(recipe, tmp_path / "run").error is None


def test_no_packaged_weights_for_the_data(own_cache: Path, tmp_path: Path) -> None:
    data = folder_of_images(tmp_path / "images", size=32)
    refused(Recipe.make(model="simplecnn", data={"name": str(data)}), tmp_path / "out", EngineError, "--weights", "qtui train simplecnn")


def test_more_classes_than_the_model_knows(own_cache: Path, tmp_path: Path, tiny_file: Path) -> None:
    data = folder_of_images(tmp_path / "images", size=32, classes=11, count=6)
    refused(Recipe.make(model=f"{tiny_file}:make", data={"name": str(data)}), tmp_path / "out", EngineError, "10 classes", "11")


def test_a_damaged_image_is_named(own_cache: Path, tmp_path: Path, tiny_file: Path) -> None:
    data = folder_of_images(tmp_path / "images", size=32)
    for file in data.rglob("*.png"):
        file.write_bytes(file.read_bytes()[:60])
    refused(Recipe.make(model=f"{tiny_file}:make", data={"name": str(data)}), tmp_path / "out", EngineError, ".png")


def test_statistics_that_overflow(tiny: Make, tmp_path: Path) -> None:
    recipe = tiny(data={"mean": [0.5, 0.5, 0.5], "std": [1e-45, 1e-45, 1e-45]})
    refused(recipe, tmp_path, EngineError, "digits", "NaN or infinity", "data.mean and data.std")


def test_nan_that_only_later_images_give(own_cache: Path, tmp_path: Path, tiny_file: Path) -> None:
    """The first images are fine; calibration or evaluation meets the others."""
    file = tmp_path / "m.py"
    file.write_text(
        tiny_file.read_text()
        + """

class Late(nn.Module):
    def __init__(self, level):
        super().__init__()
        self.level, self.inner = level, make()

    def forward(self, x):
        bright = x.mean((1, 2, 3)).reshape(-1, 1)
        return self.inner(x) + torch.log(torch.relu(self.level - bright))


def late():
    return Late(LEVEL)
""".replace("LEVEL", repr(_between_first_and_brightest()))
    )
    recipe = Recipe.make(model=f"{file}:late", data={"calibration": 8})
    refused(recipe, tmp_path / "out", EngineError, "NaN or infinity", "data.mean")


def _between_first_and_brightest() -> float:
    data = digits.load()
    first = max(x.mean((1, 2, 3)).max().item() for x, _ in data.batches("train", 8, limit=8))
    later = max(x.mean((1, 2, 3)).max().item() for split in ("validation", "test") for x, _ in data.batches(split, 64))
    assert later > first
    return (first + later) / 2


@pytest.mark.parametrize("calibration", [0, -1])
def test_an_empty_calibration_set_cannot_be_asked_for(tiny: Make, calibration: int) -> None:
    with pytest.raises(UsageError, match=r"data\.calibration is .*1 or more"):
        tiny(data={"calibration": calibration})


def test_a_training_split_without_images(tiny: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = digits.load()
    nothing = replace(data, train=Subset(data.train, torch.empty(0, dtype=torch.int64)))
    monkeypatch.setattr(digits, "load", lambda folder=None, size=None: nothing)
    refused(tiny(), tmp_path, EngineError, "calibration set is empty", "digits")


def test_cuda_without_a_gpu(tiny: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    refused(tiny(device="cuda"), tmp_path, UsageError, "--device cuda", "--device cpu")


def test_an_unexpected_failure_while_loading_is_one_line(tiny: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise MemoryError("no\nmore")

    monkeypatch.setattr("engine.data.registry.load", fail)
    refused(tiny(), tmp_path, EngineError, "MemoryError while loading", "no more", "lower data.batch")


def test_an_unexpected_failure_later_keeps_its_traceback(tiny: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> Any:
        raise ZeroDivisionError("one\ntwo")

    monkeypatch.setattr("engine.lowering.graph.conversion.convert", fail)
    outcome = drive(tiny(), tmp_path / "run")
    text = str(outcome.error)
    assert type(outcome.error) is EngineError and "\n" not in text and "one two" in text and "during convert" in text
    assert str(tmp_path / "run" / "traceback.txt") in text
    assert "ZeroDivisionError" in (tmp_path / "run" / "traceback.txt").read_text() and state_of(tmp_path / "run") == "failed"


# The folder of the run.


def test_a_folder_below_a_file(tiny: Make, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for out in (tmp_path / "file", tmp_path / "file" / "run"):
        outcome = drive(tiny(), out)
        text = str(outcome.error)
        assert type(outcome.error) is EngineError and str(out) in text and "cannot be written" in text and "--out" in text
        assert tree(tmp_path) == {"file": b"mine"}


def test_a_name_that_is_too_long(tiny: Make, tmp_path: Path) -> None:
    outcome = drive(tiny(), tmp_path / ("x" * 300))
    assert type(outcome.error) is EngineError and "too long" in str(outcome.error) and tree(tmp_path) == {}


def test_a_folder_without_permission(tiny: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def deny(*_: Any, **__: Any) -> Any:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("engine.paths.write_atomic", deny)
    refused(tiny(), tmp_path, EngineError, "cannot be written (Permission denied)", "--out")


def test_too_little_room(tiny: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.runs.rundir.shutil.disk_usage", lambda _: type("Usage", (), {"free": 10}))
    refused(tiny(), tmp_path, EngineError, "0.0 MB free", "--out on another disk")


@pytest.mark.parametrize("name", ["recipe.yaml", "model.safetensors", "report.md", "report.json", "state.json"])
def test_a_disk_that_is_full_at_one_file(tiny: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    def full(path: Path, content: bytes) -> None:
        if path.name == name:
            raise FULL
        write_atomic(path, content)

    monkeypatch.setattr("engine.paths.write_atomic", full)
    refused(tiny(), tmp_path, EngineError, name, "No space left", "free some space")


def test_a_disk_that_is_full_when_the_end_is_noted(tiny: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, content: bytes) -> None:
        if path.name == "state.json" and b'"finished"' in content:
            raise FULL
        write_atomic(path, content)

    monkeypatch.setattr("engine.paths.write_atomic", full)
    refused(tiny(), tmp_path, EngineError, "state.json", "No space left")


def test_a_disk_that_is_full_at_the_first_checkpoint(tiny: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, content: bytes) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.name == "qat.pt":
            raise FULL
        write_atomic(path, content)

    monkeypatch.setattr("engine.paths.write_atomic", full)
    recipe = tiny(qat={"mode": "always", "epochs": 1, "batch": 256})
    refused(recipe, tmp_path, EngineError, "qat.pt", "No space left", "free some space")


def test_a_disk_that_is_full_after_a_checkpoint_keeps_the_training(tiny: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, content: bytes) -> None:
        if path.name == "model.safetensors":
            raise FULL
        write_atomic(path, content)

    run = tmp_path / "run"
    recipe = tiny(qat={"mode": "always", "epochs": 1, "batch": 256})
    with monkeypatch.context() as patch:
        patch.setattr("engine.paths.write_atomic", full)
        outcome = drive(recipe, run)
    assert type(outcome.error) is EngineError and state_of(run) == "failed" and (run / "checkpoints" / "qat.pt").exists()
    assert not (run / "report.json").exists() and not list(run.rglob("*.tmp"))
    with untimed():
        stop = StopToken()
        again = consume(pipeline.resume(run, stop), stop)
    assert again.report is not None and not again.of(EpochFinished)


@pytest.fixture(scope="module")
def small_disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A file system of a megabyte."""
    place = tmp_path_factory.mktemp("disk")
    tool = shutil.which("mount")
    if tool is None or subprocess.run([tool, "-t", "tmpfs", "-o", "size=1m", "qtui-test", str(place)], capture_output=True).returncode:
        pytest.skip("no right to mount a small file system")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def _fill(place: Path) -> None:
    with contextlib.suppress(OSError), (place / "filler").open("ab", buffering=0) as file:
        for size in (4096, 1):
            with contextlib.suppress(OSError):
                while file.write(b"x" * size):
                    pass


_MOMENTS: dict[str, Callable[[Event], bool]] = {
    "at the first question": lambda event: isinstance(event, Ask),
    "at calibration": lambda event: isinstance(event, StageStarted) and event.stage == "calibrate",
    "at the model": lambda event: isinstance(event, StageStarted) and event.stage == "export",
    "at the report": lambda event: isinstance(event, Notice) and "read back" in event.text,
}


@pytest.mark.parametrize("moment", _MOMENTS)
def test_a_disk_that_runs_full(tiny: Make, small_disk: Path, moment: str) -> None:
    def fill(event: Event, stop: StopToken) -> None:
        if _MOMENTS[moment](event):
            _fill(small_disk)

    outcome = drive(tiny(), small_disk / "run", on_event=fill)
    text = str(outcome.error)
    (small_disk / "filler").unlink()
    assert type(outcome.error) is EngineError, outcome.error
    assert "No space left" in text and "cannot be written" in text and "\n" not in text
    assert tree(small_disk) == {}


def test_stopping_on_a_full_disk_is_a_stop(tiny: Make, small_disk: Path) -> None:
    def fill_and_stop(event: Event, stop: StopToken) -> None:
        if isinstance(event, StageStarted) and event.stage == "calibrate":
            _fill(small_disk)
            stop.set()

    outcome = drive(tiny(), small_disk / "run", on_event=fill_and_stop)
    (small_disk / "filler").unlink()
    assert type(outcome.error).__name__ == "Cancelled"
    assert not list((small_disk / "run").rglob("*.tmp"))
    shutil.rmtree(small_disk / "run")


# Training a baseline.


@pytest.mark.parametrize(
    ("model", "data", "kind", "says"),
    [
        ("simplecn", "digits", UsageError, "simplecnn"),
        ("simplecnn", "digit", UsageError, "digits"),
        ("simplecnn", "./no", EngineError, "./no"),
    ],
)
def test_training_what_is_not_there(own_cache: Path, tmp_path: Path, model: str, data: str, kind: type, says: str) -> None:
    outcome = consume(train(model, data, out=tmp_path / "w.safetensors"), StopToken())
    assert type(outcome.error) is kind and says in str(outcome.error) and tree(tmp_path) == {}


def test_training_into_a_place_that_cannot_be_written(own_cache: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    outcome = consume(train("simplecnn", "digits", out=tmp_path / "file" / "w.safetensors", epochs=1), StopToken())
    assert type(outcome.error) is EngineError and "w.safetensors" in str(outcome.error) and "\n" not in str(outcome.error)
    assert not outcome.of(EpochFinished), "it should be known before hours of training"
    assert tree(tmp_path) == {"file": b"mine"}


def test_a_place_for_weights_is_tried_without_a_trace(tmp_path: Path) -> None:
    check_writable(tmp_path / "a" / "b" / "w.safetensors")
    assert tree(tmp_path) == {}


def test_training_that_cannot_save_says_so(own_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, content: bytes) -> None:
        raise FULL

    monkeypatch.setattr("engine.paths.write_atomic", full)
    data = digits.load()
    few = replace(data, train=Subset(data.train, torch.arange(8)))
    monkeypatch.setattr(digits, "load", lambda folder=None, size=None: few)
    outcome = consume(train("simplecnn", "digits", out=tmp_path / "w.safetensors", epochs=1), StopToken())
    assert type(outcome.error) is EngineError and "No space left" in str(outcome.error) and tree(tmp_path) == {}
