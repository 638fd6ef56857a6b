"""One run of each golden case, carried out when a test first asks for it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import golden_models
import pytest
from golden_cases import Case
from golden_runs import carry_out


@pytest.fixture(scope="session")
def golden_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with the inputs of all golden runs."""
    folder = tmp_path_factory.mktemp("golden").resolve()
    golden_models.write_inputs(folder)
    before = os.environ.get("QTUI_RUNS")
    os.environ["QTUI_RUNS"] = str(folder / "runs")
    yield folder
    if before is None:
        os.environ.pop("QTUI_RUNS")
    else:
        os.environ["QTUI_RUNS"] = before


@pytest.fixture(scope="session")
def found(golden_folder: Path) -> Callable[[Case], dict[str, Any]]:
    """What a case's run leaves behind now."""
    kept: dict[str, dict[str, Any]] = {}

    def look(case: Case) -> dict[str, Any]:
        if case.name not in kept:
            kept[case.name] = carry_out(case, golden_folder)
        return kept[case.name]

    return look
