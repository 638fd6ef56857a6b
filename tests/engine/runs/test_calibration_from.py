"""Images without labels that calibrate while labelled ones measure."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from engine.data import registry
from engine.errors import EngineError, UsageError
from engine.recipe.recipe import Recipe
from engine.tasks import classification
from engine.tasks.registry import find


def pictures(folder: Path, count: int, size: tuple[int, int]) -> None:
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i in range(count):
        Image.fromarray(rng.integers(200, 256, (*size, 3), dtype=np.uint8)).save(folder / f"{i}.png")


def test_calibration_reads_the_other_folder_and_nothing_else_does(tmp_path: Path) -> None:
    pictures(tmp_path / "more" / "deep", 9, (32, 32))
    recipe = Recipe.make(model="simplecnn", data={"name": "digits", "calibration_from": str(tmp_path / "more")})
    task, plain = classification.alone(recipe), classification.alone(Recipe.make(model="simplecnn"))
    calibrating = torch.cat([part.args[0] for part in task.calibration_batches(batch=4, limit=100)])
    stored = torch.stack([torch.from_numpy(np.array(Image.open(tmp_path / "more" / "deep" / f"{i}.png"))) for i in range(9)])
    mean, std = (torch.tensor(values)[:, None, None] for values in (task.images.mean, task.images.std))
    wanted = (stored.permute(0, 3, 1, 2).double() / 255 - mean) / std
    # The order is drawn: each of the nine images is there once.
    distances = torch.cdist(calibrating.double().flatten(1), wanted.flatten(1))
    assert sorted(distances.argmin(1).tolist()) == list(range(9)) and float(distances.min(1).values.max()) < 1e-3
    assert task.calibration_count(5) == 5 and task.data(100, None)["calibration"] == 9
    assert task.calibration_name == "images without labels"
    for split in ("train", "validation", "test"):
        ours, theirs = (next(one.batches(split, batch=16)) for one in (task, plain))  # type: ignore[arg-type]
        assert torch.equal(ours.args[0], theirs.args[0])
    assert any("9 without labels" in note for note in task.images.notes)


def test_calibration_images_are_scaled_as_the_labelled_ones_are(tmp_path: Path) -> None:
    for name in ("a", "b"):
        pictures(tmp_path / "labelled" / name, 6, (20, 30))
    pictures(tmp_path / "more", 4, (50, 40))
    data = registry.load(str(tmp_path / "labelled"), size=16, calibration_from=str(tmp_path / "more"))
    assert next(data.calibration_batches(8, 8))[0].shape == (4, 3, 16, 16)


def test_folders_and_tasks_that_cannot_calibrate_are_told_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for place, said in ((tmp_path / "empty", "holds no images"), (tmp_path / "none", "does not exist")):
        with pytest.raises(EngineError, match=said):
            registry.load("digits", calibration_from=str(place))
    with pytest.raises(UsageError, match="calibration_from is for classification"):
        find("regression").alone(Recipe.make(model="mlp", data={"name": "diabetes", "calibration_from": str(tmp_path)}))
