"""A finished run to export from, for each test a copy of its own."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from finished_runs import run

from engine.recipe.recipe import Recipe


@pytest.fixture(scope="session")
def finished_once(tiny_file: Path, own_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("finished") / "run"
    data = {"calibration": 32, "limit": 64}
    assert run(Recipe.make(model=f"{tiny_file}:make", data=data, threshold="drop:0.5"), out).report
    return out


@pytest.fixture
def finished(finished_once: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished_once, tmp_path / "run"))
