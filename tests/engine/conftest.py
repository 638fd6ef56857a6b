"""Fixtures for tests of whole runs: a small model in a file, and one real run that several tests look at."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import driving
import pytest
import torch


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """The tensors here are tiny: a second thread only waits for the first, and on a busy machine it waits long."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The cache and the runs of the tests, in a temporary folder; the machine is probed once."""
    place = tmp_path_factory.mktemp("own")
    before = {name: os.environ.get(name) for name in ("QTUI_CACHE", "QTUI_RUNS")}
    os.environ["QTUI_CACHE"], os.environ["QTUI_RUNS"] = str(place / "cache"), str(place / "runs")
    yield place
    for name, value in before.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


@pytest.fixture(scope="session")
def tiny_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "tiny.py"
    path.write_text(driving.TINY)
    return path


@pytest.fixture
def tiny(tiny_file: Path, own_cache: Path) -> Callable[..., Any]:
    """A recipe for the small model on a few images, with changes."""
    from engine.recipe.recipe import Recipe

    def recipe(**changes: Any) -> Recipe:
        data = {"calibration": 32, "limit": 64, **changes.pop("data", {})}
        return Recipe.make(**{"model": f"{tiny_file}:make", "data": data, "threshold": "drop:0.5", **changes})

    return recipe


@dataclass(frozen=True)
class MainRun:
    """``measured`` is the model that the run measured, as it was in memory."""

    folder: Path
    report: Any
    measured: Any


@pytest.fixture(scope="session")
def main_run(own_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> MainRun:
    """``quantize(simplecnn)`` on digits, all of it real but for one thing: no layer is found slower on integers."""
    from unittest.mock import patch

    import engine.runs.job as job
    from engine import Recipe, quantize

    folder = tmp_path_factory.mktemp("main") / "run"
    held: list[Any] = []

    def export(run: Any, subject: Any, chosen: Any, *rest: Any) -> Any:
        held.append(chosen.quantized.model)
        return original(run, subject, chosen, *rest)

    original = job.export
    with driving.one_thread(), patch.object(job, "export", export), patch("engine.lowering.graph.layer_timing.Stopwatch", driving.Untimed):
        report = quantize(Recipe.make(model="simplecnn"), folder)
    return MainRun(folder, report, held[0])
