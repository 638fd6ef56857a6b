"""Inputs without labels: what is read from files, in which forms, and what is said of it."""

from __future__ import annotations

import wave
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from scipy.io import wavfile
from scipy.signal import resample_poly

from engine.data.unlabelled import forms
from engine.errors import EngineError, UsageError
from engine.recipe.recipe import DataPart


def part_of(place: Path | str, **fields: object) -> DataPart:
    return DataPart.model_validate({"name": str(place), **fields})


def all_inputs(form: object) -> list[torch.Tensor]:
    found: list[torch.Tensor] = []
    for split in ("train", "validation", "test"):
        for items, _ in form.batches(split, 1):  # type: ignore[attr-defined]
            found.append(items.inputs)
    return found


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".pt", ".safetensors"])
def test_arrays_of_each_kind_of_file_are_the_numbers_that_were_saved(tmp_path: Path, suffix: str) -> None:
    numbers = np.random.default_rng(0).normal(size=(10, 3, 4)).astype(np.float32)
    path = tmp_path / f"x{suffix}"
    if suffix == ".npy":
        np.save(path, numbers)
    elif suffix == ".npz":
        np.savez(path, numbers)
    elif suffix == ".pt":
        torch.save(torch.from_numpy(numbers), path)
    else:
        save_file({"x": torch.from_numpy(numbers)}, path)
    (form,) = forms(part_of(path))
    assert [form.count(split) for split in ("train", "validation", "test")] == [7, 1, 2]
    read = torch.cat(all_inputs(form)).numpy()
    assert sorted(map(tuple, read.reshape(10, -1))) == sorted(map(tuple, numbers.reshape(10, -1)))
    assert any("10 items divided by a fixed seed: 7 calibrate, 1 validate, 2 test" in note for note in form.notes)


def test_several_arrays_are_inputs_by_name_or_by_place(tmp_path: Path) -> None:
    image, ids = np.zeros((4, 2, 3), np.float64), np.arange(4, dtype=np.int16)
    np.savez(tmp_path / "x.npz", image=image, ids=ids)
    by_name, by_place = forms(part_of(tmp_path / "x.npz"))
    named, _ = next(by_name.batches("train", 2))
    assert named.inputs["image"].dtype == torch.float32 and named.inputs["ids"].dtype == torch.int64
    placed, _ = next(by_place.batches("train", 2))
    assert isinstance(placed.inputs, tuple) and placed.inputs[0].shape == (2, 2, 3)
    assert any("float64 is read as float32" in note for note in by_name.notes)


def test_files_of_a_folder_are_many_items_each_or_one_item_each(tmp_path: Path) -> None:
    for i in range(4):
        np.save(tmp_path / f"{i}.npy", np.full((3, 5), i, np.float32))
    many, single = forms(part_of(tmp_path))
    assert next(many.batches("train", 2))[0].inputs.shape == (2, 5)
    assert next(single.batches("train", 2))[0].inputs.shape == (2, 3, 5)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("x.npy", np.array([object()]), "cannot be read as arrays"),
        ("x.npy", np.zeros((3, 2), np.complex64), "give real numbers"),
        ("x.npy", np.array([[1.0], [np.nan]]), "NaN or infinity"),
        ("x.npy", np.zeros((0, 2)), "holds no items"),
        ("x.npz", {"a": np.zeros((3, 2)), "b": np.zeros((4, 2))}, "count different items"),
        ("x.pt", {"a": "text"}, "holds str"),
    ],
)
def test_files_that_are_no_inputs_are_told_in_one_line(tmp_path: Path, name: str, content: object, said: str) -> None:
    path = tmp_path / name
    if name.endswith("npz"):
        np.savez(path, **content)  # type: ignore[arg-type]
    elif name.endswith("pt"):
        torch.save(content, path)
    else:
        np.save(path, content, allow_pickle=True)  # type: ignore[arg-type]
    with pytest.raises(EngineError, match=said) as caught:
        forms(part_of(path))
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_images_are_read_nested_normalized_and_in_batches_of_one_size(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    rng = np.random.default_rng(0)
    for i in range(12):
        pixels = rng.integers(0, 256, (6 + 2 * (i % 2), 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save((tmp_path / "deep" if i % 3 else tmp_path) / f"{i}.png")
    colour, grey = forms(part_of(tmp_path, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25)))
    batches = [items.inputs for items, _ in colour.batches("train", 8)]
    assert {x.shape[2] for x in batches} == {6, 8} and sum(map(len, batches)) == colour.count("train")
    assert len(batches) == colour.steps("train", 8)
    assert any("images of 2 sizes, each batch of one" in note for note in colour.notes)
    place = colour.train.places[0]  # type: ignore[attr-defined]
    path = colour.train.whole.paths[place]  # type: ignore[attr-defined]
    wanted = (np.asarray(Image.open(path), np.float64) / 255 - 0.5) / 0.25
    assert np.allclose(colour.train.read([0]).inputs[0].numpy(), wanted.transpose(2, 0, 1), atol=1e-6)
    assert grey.train.read([0]).inputs.shape[1] == 1
    sized, _ = forms(part_of(tmp_path, size=4))
    assert next(sized.batches("train", 64))[0].inputs.shape[2:] == (4, 4)


def test_folders_for_the_splits_are_the_splits(tmp_path: Path) -> None:
    for name, count in (("train", 5), ("val", 2), ("test", 3)):
        (tmp_path / name).mkdir()
        for i in range(count):
            Image.new("RGB", (4, 4), (i, 0, 0)).save(tmp_path / name / f"{i}.png")
    (form, _) = forms(part_of(tmp_path))
    assert [form.count(split) for split in ("train", "validation", "test")] == [5, 2, 3]


def test_one_item_calibrates_and_is_measured_which_is_doubted(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.ones((1, 3), np.float32))
    (form,) = forms(part_of(tmp_path / "x.npy"))
    assert form.count("train") == form.count("test") == 1 and "the only item" in form.doubt


def wav(path: Path, rate: int, samples: np.ndarray) -> None:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(samples.shape[1])
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(samples.astype("<i2").tobytes())


def test_audio_is_between_minus_one_and_one_at_the_rate_that_is_asked_for(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    sounds = [rng.integers(-32768, 32767, (800, 2)) for _ in range(3)]
    for i, sound in enumerate(sounds):
        wav(tmp_path / f"{i}.wav", 8000, sound)
    channels, mono, flat = forms(part_of(tmp_path))
    assert any("8,000 samples a second" in note for note in channels.notes) and channels.about["rate"] == 8000
    place = channels.train.places[0]  # type: ignore[attr-defined]
    wanted = sounds[place].T / 32768
    assert np.allclose(channels.train.read([0]).inputs[0].numpy(), wanted, atol=1e-7)
    assert np.allclose(flat.train.read([0]).inputs[0].numpy(), wanted.mean(0), atol=1e-7)
    assert mono.train.read([0]).inputs.shape == (1, 1, 800)
    slower, *_ = forms(part_of(tmp_path, rate=4000, size=300))
    assert np.allclose(slower.train.read([0]).inputs[0].numpy(), resample_poly(wanted, 1, 2, axis=1)[:, :300], atol=1e-6)
    wav(tmp_path / "other.wav", 16000, sounds[0])
    with pytest.raises(EngineError, match="give --rate"):
        forms(part_of(tmp_path))


def test_a_recording_that_is_cut_short_is_told(tmp_path: Path) -> None:
    sound = np.random.default_rng(0).integers(-100, 100, (800, 1))
    wav(tmp_path / "x.wav", 8000, sound)
    whole = (tmp_path / "x.wav").read_bytes()
    (tmp_path / "x.wav").write_bytes(whole[:1000])
    with pytest.raises(EngineError, match=r"x\.wav is cut short: it has 1,000 of 1,644 bytes"):
        forms(part_of(tmp_path / "x.wav"))
    # A pipe knows no length: its header says that of the longest file.
    (tmp_path / "x.wav").write_bytes(whole[:4] + b"\xff" * 4 + whole[8:40] + b"\xff" * 4 + whole[44:])
    assert forms(part_of(tmp_path / "x.wav"))[0].train.read([0]).inputs.shape == (1, 1, 800)


def test_floats_of_a_recording_that_are_no_floats_between_minus_one_and_one_are_refused(tmp_path: Path) -> None:
    wavfile.write(tmp_path / "x.wav", 8000, np.full(100, 1.5, dtype=np.float32))
    assert forms(part_of(tmp_path / "x.wav"))[0].train.read([0]).inputs.max() == 1.5
    wavfile.write(tmp_path / "x.wav", 8000, np.full(100, 20000, dtype=np.float32))
    with pytest.raises(EngineError, match=r"x\.wav holds floats up to 2e\+04"):
        forms(part_of(tmp_path / "x.wav"))


def test_a_rate_that_no_memory_would_hold_is_refused(tmp_path: Path) -> None:
    wav(tmp_path / "x.wav", 3, np.zeros((800, 1)))
    with pytest.raises(EngineError, match=r"x\.wav has 3 samples a second, which are not brought to 4,000,037"):
        forms(part_of(tmp_path / "x.wav", rate=4000037))[0].train.read([0])


def test_random_inputs_have_the_shapes_that_are_asked_for_and_say_that_they_are_random() -> None:
    (form,) = forms(part_of("random:3x8x6,int:10:7,bool:4"))
    (image, ids, mask), _ = next(form.batches("train", 16))[0].inputs, 0
    assert image.shape == (16, 3, 8, 6) and ids.shape == (16, 10) and mask.dtype == torch.bool
    assert int(ids.min()) >= 0 and int(ids.max()) < 7
    again = forms(part_of("random:3x8x6,int:10:7,bool:4"))[0]
    assert torch.equal(next(again.batches("train", 16))[0].inputs[0], image)
    assert not torch.equal(form.test.read([0]).inputs[0], form.train.read([0]).inputs[0])
    assert "tell nothing of the data" in form.doubt
    for wrong in ("random:", "random:0x3", "random:axb", "random:3x3,"):
        with pytest.raises(UsageError, match="random:3x224x224|3x224x224"):
            forms(part_of(wrong))
