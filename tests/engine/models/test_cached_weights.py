"""Weights that were trained here are found again, by the data they were trained on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from driving import consume, drive
from PIL import Image
from safetensors.torch import load_file

from engine.errors import EngineError, UsageError
from engine.events.cancellation import StopToken
from engine.events.event import Notice
from engine.models.cached import cached_for, cached_weights
from engine.models.registry import WEIGHTS
from engine.recipe.recipe import Recipe
from engine.runs import examine, pipeline


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Two classes of noise around different greys, 32 pixels wide."""
    draw = np.random.default_rng(0)
    for grey, name in ((60, "dark"), (190, "light")):
        (tmp_path / "images" / name).mkdir(parents=True)
        for index in range(24):
            noise = draw.integers(-40, 40, (32, 32, 3))
            Image.fromarray((grey + noise).astype(np.uint8)).save(tmp_path / "images" / name / f"{index}.png")
    return tmp_path / "images"


def test_folders_of_the_same_name_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QTUI_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a" / "images").mkdir(parents=True)
    one, other = (cached_weights("m", str(tmp_path / place / "images")) for place in "ab")
    assert one != other and one.parent == tmp_path / "cache" / "weights" and one.name.startswith("m-images-")
    assert one == cached_weights("m", "a/images") == cached_weights("m", "./a/images/")
    assert cached_weights("m", "digits").name == "m-digits.safetensors"
    assert cached_weights("../x:y", "a b").name == "---x-y-a-b.safetensors"
    assert list(cached_for("m")) == []


def test_what_was_trained_is_what_a_run_takes(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QTUI_CACHE", str(tmp_path / "cache"))
    recipe = Recipe.make(model="simplecnn", data={"name": str(images), "calibration": 8}, threshold="drop:1")
    missing = drive(recipe, tmp_path / "run")
    assert isinstance(missing.error, EngineError) and "has no weights for images" in str(missing.error)
    stop = StopToken()
    kept = cached_weights("simplecnn", str(images))
    trained = consume(pipeline.train("simplecnn", str(images), out=kept, epochs=1, stop=stop), stop)
    assert trained.report == kept and kept.is_file() and list(cached_for("simplecnn")) == [("images", kept)]
    outcome = drive(recipe, tmp_path / "run")
    assert outcome.data["environment"]["weights"] == "from the cache"
    assert any("weights from the cache" in notice.text for notice in outcome.of(Notice))
    given = drive(recipe.model_copy(update={"weights": str(kept)}), tmp_path / "given")
    assert given.data["ptq"]["error"] == outcome.data["ptq"]["error"]


def test_the_packages_weights_come_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QTUI_CACHE", str(tmp_path / "cache"))
    other = cached_weights("simplecnn", "digits")
    other.parent.mkdir(parents=True)
    other.write_bytes(b"rubbish")
    assert load_file(WEIGHTS / "simplecnn-digits.safetensors")
    recipe = Recipe.make(model="simplecnn", data={"calibration": 8, "limit": 8}, threshold="drop:1")
    assert drive(recipe, tmp_path / "run").data["environment"]["weights"] == "from the package"


def test_a_machine_is_examined_as_plain_values(tiny: Callable[..., Any]) -> None:
    found = examine.examine()
    assert found["torch"] == torch.__version__ and found["activation_bits"] in (7, 8)
    assert set(found["packages"]) == set(examine.OPTIONAL) and set(found["folders"]) == {"cache", "data", "runs"}
    assert found["processor"] is None or isinstance(found["processor"], str)


def test_training_goes_by_name(tmp_path: Path) -> None:
    stop = StopToken()
    outcome = consume(pipeline.train(f"{tmp_path / 'net.py'}:make", "digits", stop=stop), stop)
    assert isinstance(outcome.error, UsageError) and "training goes by name" in str(outcome.error)
